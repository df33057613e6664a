// Conversion of exceptions to a status and a message, for the functions of interface.h.
#pragma once
#include <cstdint>
#include <exception>
#include <new>
#include <stdexcept>

#include "failure.h"
#include "interface.h"
#include "thread_data.h"

namespace tfm {

inline int32_t failed(int32_t status, const char* text) {
  set_last_error(text);
  return status;
}

// Run `body` and return its status; no exception escapes.
template <class Body>
int32_t guarded(Body&& body) noexcept {
  try {
    body();
    return TFM_OK;
  } catch (const Failure& failure) {
    return failed(failure.status, failure.what());
  } catch (const std::bad_alloc&) {
    return failed(TFM_NO_MEMORY, "out of memory");
  } catch (const std::length_error&) {  // of a vector that exceeds the address space
    return failed(TFM_NO_MEMORY, "out of memory");
  } catch (const std::exception& error) {
    return failed(TFM_DEFECT, error.what());
  } catch (...) {
    return failed(TFM_DEFECT, "an unknown fault");
  }
}

}  // namespace tfm
