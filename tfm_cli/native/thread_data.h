// Data of each calling thread: its failpoint, its last error, and its crash note.
//
// A call must return an error code when memory runs out. glibc ends the process if it cannot allocate
// the thread-local storage of a library that was loaded at run time. A variable with the TLS model
// initial-exec puts all thread-local storage of this library, that of the C++ runtime for
// exceptions included, in the block that each thread has from its start; that block has little
// space, so the texts are allocated.
#pragma once
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

// Other C libraries allocate thread-local storage when a library is loaded; musl has no initial-exec then.
#if defined(__GLIBC__)
#define TFM_STATIC_TLS __attribute__((tls_model("initial-exec")))
#else
#define TFM_STATIC_TLS
#endif

namespace tfm {

// n > 0 makes the n-th next allocation of this thread fail, once.
inline thread_local int64_t allocation_to_fail TFM_STATIC_TLS = 0;

struct ThreadTexts {
  char last_error[256];
  char crash_note[2048];  // empty for none
};

#if defined(__unix__) || defined(__APPLE__)

// A key rather than a thread_local object, whose destructor could not be registered without memory.
class ThreadTextsKey {
 public:
  ThreadTextsKey() { is_valid_ = pthread_key_create(&key_, std::free) == 0; }
  // Return the texts of this thread, or null if there are none.
  ThreadTexts* find() const { return is_valid_ ? static_cast<ThreadTexts*>(pthread_getspecific(key_)) : nullptr; }
  // Return the texts of this thread, or null if there is no memory for them.
  ThreadTexts* find_or_allocate() const {
    ThreadTexts* texts = find();
    if (texts || !is_valid_) return texts;
    texts = static_cast<ThreadTexts*>(std::calloc(1, sizeof(ThreadTexts)));
    if (texts && pthread_setspecific(key_, texts) != 0) {
      std::free(texts);
      return nullptr;
    }
    return texts;
  }

 private:
  pthread_key_t key_;
  bool is_valid_;
};
inline const ThreadTextsKey thread_texts_key;

inline ThreadTexts* thread_texts() { return thread_texts_key.find(); }
inline ThreadTexts* allocated_thread_texts() { return thread_texts_key.find_or_allocate(); }

#else

inline thread_local ThreadTexts texts_of_thread = {};

inline ThreadTexts* thread_texts() { return &texts_of_thread; }
inline ThreadTexts* allocated_thread_texts() { return &texts_of_thread; }

#endif

// Store the error that tfm_error returns to this thread; without memory, only the status is returned.
inline void set_last_error(const char* text) {
  if (ThreadTexts* texts = allocated_thread_texts()) snprintf(texts->last_error, sizeof texts->last_error, "%s", text);
}

inline const char* last_error() {
  const ThreadTexts* texts = thread_texts();
  return texts ? texts->last_error : "out of memory";
}

// Store or clear the note of this thread; without memory, there is no note.
inline void set_crash_note(const char* text) {
  const bool is_empty = text == nullptr || text[0] == '\0';
  if (ThreadTexts* texts = is_empty ? thread_texts() : allocated_thread_texts())
    snprintf(texts->crash_note, sizeof texts->crash_note, "%s", is_empty ? "" : text);
}

inline const char* crash_note() {
  const ThreadTexts* texts = thread_texts();
  return texts ? texts->crash_note : "";
}

}  // namespace tfm
