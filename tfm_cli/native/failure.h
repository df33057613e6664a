// The exception that becomes the status and the message of a call.
#pragma once
#include <cstdarg>
#include <cstdio>
#include <exception>

#include "interface.h"

namespace tfm {

class Failure : public std::exception {
 public:
  Failure(int32_t status, const char* text) : status(status) {
    snprintf(message, sizeof message, "%s", text);
  }
  const char* what() const noexcept override { return message; }
  const int32_t status;

 private:
  char message[256];
};

// Throw a failure of TFM_BAD_ARGUMENT.
[[noreturn]] inline __attribute__((format(printf, 1, 2))) void refuse(const char* format, ...) {
  char text[256];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  throw Failure(TFM_BAD_ARGUMENT, text);
}

[[noreturn]] inline void refuse_non_finite() {
  throw Failure(TFM_NON_FINITE, "the scores of the next token are not finite");
}

}  // namespace tfm
