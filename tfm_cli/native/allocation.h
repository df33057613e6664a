// Memory of the engine: aligned, zeroed, counted by its owner, with a failpoint for tests.
//
// An allocation that fails throws std::bad_alloc. Large blocks are mapped: a page takes memory when it
// is first written to, so a cache takes only the memory that is used.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <utility>
#include <vector>

#include "thread_data.h"

#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#define TFM_HAS_MMAP 1
#endif

namespace tfm {

inline void fail_allocation(int64_t n) { allocation_to_fail = n; }

inline void check_failpoint() {
  if (allocation_to_fail > 0 && --allocation_to_fail == 0) throw std::bad_alloc();
}

constexpr size_t kCacheLine = 64;
constexpr size_t kPage = 4096;
constexpr size_t kHugePage = size_t{2} << 20;
// Blocks of at least this size are mappings, which the kernel zeroes page by page.
constexpr size_t kMappedFrom = size_t{256} << 10;

constexpr size_t round_up(size_t size, size_t multiple) {
  return (size + multiple - 1) / multiple * multiple;
}

// Return the size of `count` elements; throw std::bad_alloc if it overflows.
inline size_t array_bytes(size_t count, size_t element) {
  if (count > std::numeric_limits<ptrdiff_t>::max() / element) throw std::bad_alloc();
  return count * element;
}

// A block of zeros aligned to a cache line, or to a huge page if it is at least as large.
class Block {
 public:
  Block() = default;
  // huge: request huge pages, for data that is read repeatedly as one stream.
  explicit Block(size_t bytes, bool huge = false) {
    if (bytes == 0) return;
    check_failpoint();
    if (bytes > size_t(std::numeric_limits<ptrdiff_t>::max()) - 2 * kHugePage) throw std::bad_alloc();
#if TFM_HAS_MMAP
    if (bytes >= kMappedFrom) {
      map(round_up(bytes, kPage), huge);
      return;
    }
#endif
    size_ = round_up(bytes, kCacheLine);
#if defined(_WIN32)
    data_ = _aligned_malloc(size_, kCacheLine);
#else
    data_ = std::aligned_alloc(kCacheLine, size_);
#endif
    if (data_ == nullptr) {
      size_ = 0;
      throw std::bad_alloc();
    }
    std::memset(data_, 0, size_);
  }
  Block(Block&& other) noexcept { swap(other); }
  Block& operator=(Block&& other) noexcept {
    Block gone(std::move(other));
    swap(gone);
    return *this;
  }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  ~Block() {
    if (data_ == nullptr) return;
#if TFM_HAS_MMAP
    if (mapped_) {
      munmap(data_, size_);
      return;
    }
#endif
#if defined(_WIN32)
    _aligned_free(data_);
#else
    std::free(data_);
#endif
  }

  void* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  void swap(Block& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(mapped_, other.mapped_);
  }
#if TFM_HAS_MMAP
  void map(size_t bytes, bool huge) {
    size_t slack = huge && bytes >= kHugePage ? kHugePage : 0;
    void* mapping = mmap(nullptr, bytes + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping == MAP_FAILED) throw std::bad_alloc();
    char* from = static_cast<char*>(mapping);
    if (slack) {  // use the part that begins at a huge page
      char* aligned = from + (kHugePage - reinterpret_cast<uintptr_t>(from) % kHugePage) % kHugePage;
      if (aligned != from) munmap(from, size_t(aligned - from));
      char* end = from + bytes + slack;
      if (aligned + bytes != end) munmap(aligned + bytes, size_t(end - (aligned + bytes)));
      from = aligned;
    }
#if defined(MADV_HUGEPAGE)
    if (slack) madvise(from, bytes, MADV_HUGEPAGE);
#endif
    data_ = from;
    size_ = bytes;
    mapped_ = true;
  }
#endif
  void* data_ = nullptr;
  size_t size_ = 0;
  bool mapped_ = false;
};

// The arrays of a model, allocated next to each other in huge pages and freed together.
class Arena {
 public:
  // Return `count` zeros aligned to a cache line.
  template <class T>
  T* take(size_t count) {
    size_t bytes = round_up(array_bytes(count, sizeof(T)), kCacheLine);
    if (bytes > size_t(std::numeric_limits<ptrdiff_t>::max()) / 2) throw std::bad_alloc();
    if (bytes > left_) {
      size_t size = bytes > kChunk / 4 ? bytes : kChunk;
      blocks_.reserve(blocks_.size() + 1);
      blocks_.emplace_back(size, true);
      if (size != kChunk) {  // a large array has its own block; the current chunk remains in use
        used_ += bytes;
        return static_cast<T*>(blocks_.back().data());
      }
      next_ = static_cast<char*>(blocks_.back().data());
      left_ = size;
    }
    T* result = reinterpret_cast<T*>(next_);
    next_ += bytes;
    left_ -= bytes;
    used_ += bytes;
    return result;
  }
  size_t bytes() const { return used_; }

 private:
  static constexpr size_t kChunk = 8 * kHugePage;
  std::vector<Block> blocks_;
  char* next_ = nullptr;
  size_t left_ = 0, used_ = 0;
};

// Memory that grows on demand and is reused: activations and caches. Its contents are lost on growth.
class Buffer {
 public:
  // Return at least `count` elements, padded by the width of a vector. huge: request huge pages.
  template <class T>
  T* get(size_t count, bool huge = false) {
    size_t bytes = array_bytes(count, sizeof(T)) + 2 * kCacheLine;
    if (bytes > block_.size()) {
      block_ = Block();  // free before allocating, to lower the peak
      block_ = Block(bytes < kMappedFrom ? bytes + bytes / 4 : bytes, huge);
    }
    return static_cast<T*>(block_.data());
  }
  void release() { block_ = Block(); }
  size_t bytes() const { return block_.size(); }

 private:
  Block block_;
};

// The allocator of vectors, subject to the failpoint.
template <class T>
struct Allocator {
  using value_type = T;
  Allocator() = default;
  template <class U>
  Allocator(const Allocator<U>&) {}
  T* allocate(size_t count) {
    check_failpoint();
    return static_cast<T*>(::operator new(array_bytes(count, sizeof(T))));
  }
  void deallocate(T* p, size_t) { ::operator delete(p); }
  template <class U>
  bool operator==(const Allocator<U>&) const { return true; }
  template <class U>
  bool operator!=(const Allocator<U>&) const { return false; }
};

template <class T>
using Vector = std::vector<T, Allocator<T>>;

}  // namespace tfm
