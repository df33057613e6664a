// The message of a process that ends by a fault inside the engine.
//
// Signal handlers belong to the process: they are installed while a thread with a note is inside a
// call, and the previous ones are restored afterwards. A fault of any other thread is passed to the
// previous handler; from then on no handler is installed or restored, since that handler may have set
// its own for the time that it takes to end the process. The handlers call only functions that
// signal-safety(7) allows.
#pragma once
#include <cstring>

#include "allocation.h"
#include "thread_data.h"

#if defined(__unix__) || defined(__APPLE__)
#include <poll.h>
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
constexpr int kMaxCalls = 256;  // further threads have no note

struct FaultHandlers {
  std::mutex mutex;
  int num_calls = 0;
  std::atomic<bool> is_changing{false};   // true while a guard installs or restores handlers
  std::atomic<bool> is_passed_on{false};  // true once a fault was passed to a previous handler
  NotedCall calls[kMaxCalls];
  struct sigaction before[kNumFaults];
};
inline FaultHandlers fault_handlers;

inline const char* note_of_call() {
  for (const NotedCall& call : fault_handlers.calls)
    if (const char* note = call.note; note && pthread_equal(call.thread, pthread_self())) return note;
  return nullptr;
}

// Install or restore handlers by `change`, unless a fault was passed on; the caller holds the mutex.
template <typename Change>
void change_handlers(const Change& change) {
  fault_handlers.is_changing = true;
  if (!fault_handlers.is_passed_on)
    for (int i = 0; i < kNumFaults; i++) change(kFaults[i], &fault_handlers.before[i]);
  fault_handlers.is_changing = false;
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
  // A handler must not wait for a mutex: a change takes microseconds, and after 100 ms it is not awaited.
  fault_handlers.is_passed_on = true;
  for (int i = 0; i < 100 && fault_handlers.is_changing; i++) poll(nullptr, 0, 1);
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
    change_handlers([&](int number, struct sigaction* before) { sigaction(number, &action, before); });
  }
  ~CrashGuard() {
    if (!call_) return;
    const std::lock_guard<std::mutex> lock(fault_handlers.mutex);
    if (--fault_handlers.num_calls == 0)
      change_handlers([](int number, struct sigaction* before) { sigaction(number, before, nullptr); });
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
