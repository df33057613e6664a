// Calls of the engine in threads that have not called it before and cannot have any more memory.
//
// The path of a library is the argument. The program ends with 0 if each call returned its status.
#include <dlfcn.h>
#include <pthread.h>
#include <sys/resource.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

using ModelNew = int32_t (*)(const void* options, void** model);
using Error = const char* (*)();
using CrashNote = void (*)(const char* text);

static ModelNew model_new;
static Error last_error;
static CrashNote crash_note;
static pthread_barrier_t barrier;
static constexpr int32_t kBadArgument = 1;

static bool returns_status() {
  crash_note("a note");
  const bool right = model_new(nullptr, nullptr) == kBadArgument && strlen(last_error()) > 0;
  crash_note(nullptr);
  return right;
}

static void* call_without_memory(void* right) {
  pthread_barrier_wait(&barrier);  // the thread was started
  pthread_barrier_wait(&barrier);  // the memory is used up
  *static_cast<bool*>(right) = returns_status();
  return nullptr;
}

int main(int, char** arguments) {
  void* library = dlopen(arguments[1], RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    fprintf(stderr, "%s\n", dlerror());
    return 2;
  }
  model_new = reinterpret_cast<ModelNew>(dlsym(library, "tfm_model_new"));
  last_error = reinterpret_cast<Error>(dlsym(library, "tfm_error"));
  crash_note = reinterpret_cast<CrashNote>(dlsym(library, "tfm_crash_note"));

  bool right_in_thread = false;
  pthread_t thread;
  pthread_barrier_init(&barrier, nullptr, 2);
  if (pthread_create(&thread, nullptr, call_without_memory, &right_in_thread)) return 2;
  pthread_barrier_wait(&barrier);

  const rlimit none = {0, RLIM_INFINITY};
  setrlimit(RLIMIT_AS, &none);
  for (size_t size = size_t{1} << 20; size >= 16; size /= 2)
    while (void* block = malloc(size)) memset(block, 1, size < 64 ? size : 64);

  const bool right = returns_status();
  pthread_barrier_wait(&barrier);
  pthread_join(thread, nullptr);
  return right && right_in_thread ? 0 : 1;
}
