// The message of a process that ends by a fault inside the engine.
//
// Signal handlers belong to the process: they are installed while a thread with a note is inside a
// call, and the previous ones are restored afterwards. A fault of any other thread is passed to the
// previous handler. The handlers call only functions that signal-safety(7) allows.
#pragma once
#include <cstring>

#include "allocation.h"
#include "thread_data.h"

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <mutex>
#endif

namespace tfm {

#if defined(__unix__) || defined(__APPLE__)

constexpr int kDefect = 70;  // exit code of a bug of the program, as in tfm_cli/cli
constexpr int kFaults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
constexpr int kNumFaults = 4;
constexpr size_t kFaultStack = size_t{64} << 10;  // the stack of the thread may have overflowed

// A thread inside a call, and its note. A handler reads this table, since it must not allocate memory.
struct NotedCall {
  std::atomic<const char*> note{nullptr};  // null if this entry is free
  std::atomic<pthread_t> thread{};
};
constexpr int kMostCalls = 256;  // further threads have no note

struct FaultHandlers {
  std::mutex mutex;
  int num_calls = 0;
  NotedCall calls[kMostCalls];
  struct sigaction before[kNumFaults];
};
inline FaultHandlers fault_handlers;

inline const char* note_of_call() {
  for (const NotedCall& call : fault_handlers.calls)
    if (const char* note = call.note; note && pthread_equal(call.thread, pthread_self())) return note;
  return nullptr;
}

inline void on_fault(int number, siginfo_t* info, void*) {
  const bool is_sent = info->si_code <= 0;  // true if a process sent it, not an instruction
  const char* note = note_of_call();
  if (note && !is_sent) {
    const size_t length = strlen(note);
    ssize_t written = write(STDERR_FILENO, note, length);
    if (length && note[length - 1] != '\n') written = write(STDERR_FILENO, "\n", 1);
    (void)written;
    _exit(kDefect);
  }
  // The fault occurs again when this handler returns.
  for (int i = 0; i < kNumFaults; i++)
    if (kFaults[i] == number) sigaction(number, &fault_handlers.before[i], nullptr);
  if (is_sent) raise(number);
}

// A guard that installs the handlers for the duration of a call.
class CrashGuard {
 public:
  // stack: reused by the caller for later calls.
  explicit CrashGuard(Buffer& stack) {
    const char* note = crash_note();
    if (!note[0]) return;
    stack_t own = {};
    own.ss_sp = stack.get<char>(kFaultStack);
    own.ss_size = kFaultStack;
    const std::lock_guard<std::mutex> lock(fault_handlers.mutex);
    for (NotedCall& call : fault_handlers.calls) {
      if (call.note) continue;
      call.thread = pthread_self();
      call.note = note;
      call_ = &call;
      break;
    }
    if (!call_) return;
    has_stack_ = sigaltstack(&own, &stack_before_) == 0;
    if (fault_handlers.num_calls++) return;
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigemptyset(&action.sa_mask);
    for (int i = 0; i < kNumFaults; i++) sigaction(kFaults[i], &action, &fault_handlers.before[i]);
  }
  ~CrashGuard() {
    if (!call_) return;
    const std::lock_guard<std::mutex> lock(fault_handlers.mutex);
    if (--fault_handlers.num_calls == 0)
      for (int i = 0; i < kNumFaults; i++) sigaction(kFaults[i], &fault_handlers.before[i], nullptr);
    call_->note = nullptr;
    if (has_stack_) sigaltstack(&stack_before_, nullptr);
  }
  CrashGuard(const CrashGuard&) = delete;
  CrashGuard& operator=(const CrashGuard&) = delete;

 private:
  NotedCall* call_ = nullptr;
  bool has_stack_ = false;
  stack_t stack_before_ = {};
};

#else

class CrashGuard {
 public:
  explicit CrashGuard(Buffer&) {}
};

#endif

}  // namespace tfm
