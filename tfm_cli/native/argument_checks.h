// Checks of the arguments of a call.
//
// B segments, S source tokens, V vocabulary
#pragma once
#include <cmath>
#include <cstdint>

#include "failure.h"
#include "interface.h"

namespace tfm {

constexpr int32_t kMaxSegments = 1 << 20;
constexpr int32_t kMaxLength = 1 << 22;  // tokens; longer segments are errors, and sizes might overflow
constexpr int32_t kMaxBeams = 256;      // the index of a beam is stored in a byte

inline void check_range(const char* name, int64_t value, int64_t min, int64_t max) {
  if (value < min || value > max)
    refuse("%s must be between %lld and %lld, got %lld", name, (long long)min, (long long)max, (long long)value);
}

inline void check_ids(const char* name, const int32_t* ids, int64_t count, int32_t size) {
  if (count > 0 && !ids) refuse("%s: there are none", name);
  for (int64_t i = 0; i < count; i++)
    if (ids[i] < 0 || ids[i] >= size) refuse("%s: id %d of a vocabulary of %d", name, ids[i], size);
}

// Return the sum of `count` lengths, each checked to be at least `min`.
inline int64_t checked_sum(const char* name, const int32_t* lengths, int32_t count, int32_t min) {
  if (count > 0 && !lengths) refuse("%s: there are none", name);
  int64_t sum = 0;
  for (int32_t b = 0; b < count; b++) {
    check_range(name, lengths[b], min, kMaxLength);
    sum += lengths[b];
  }
  return sum;
}

// Check the source tokens of all segments.
inline void check_sources(const TfmBatch& batch, const TfmModelOptions& model) {
  check_range("num_segments", batch.num_segments, 0, kMaxSegments);
  const int64_t count = checked_sum("source_lengths", batch.source_lengths, batch.num_segments, 1);
  check_ids("source_ids", batch.source_ids, count, model.source_vocab_size);
}

// Check the other data of a search.
inline void check_batch(const TfmBatch& batch, const TfmModelOptions& model, const TfmSearchOptions& options) {
  check_sources(batch, model);
  const int32_t B = batch.num_segments;
  checked_sum("limits", batch.limits, B, 0);
  if (batch.prefix_lengths)
    check_ids("prefix_ids", batch.prefix_ids, checked_sum("prefix_lengths", batch.prefix_lengths, B, 0), model.target_vocab_size);
  if (options.sampling && B > 0 && !batch.seeds) refuse("seeds: there are none");
  if (!batch.allowed_lengths) return;
  checked_sum("allowed_lengths", batch.allowed_lengths, B, 0);
  const int32_t* ids = batch.allowed_ids;
  for (int32_t b = 0; b < B; b++) {
    const int32_t count = batch.allowed_lengths[b];
    check_ids("allowed_ids", ids, count, model.target_vocab_size);
    for (int32_t i = 1; i < count; i++)
      if (ids[i] <= ids[i - 1]) refuse("allowed_ids must ascend, got %d after %d", ids[i], ids[i - 1]);
    if (count > 0) ids += count;
  }
}

inline void check_options(const TfmSearchOptions& options) {
  const auto check_number = [](const char* name, double value, double min, double max) {
    if (!(value >= min && value <= max)) refuse("%s must be between %g and %g, got %g", name, min, max, value);
  };
  check_range("beam_size", options.beam_size, 1, kMaxBeams);
  check_range("no_repeat_ngram_size", options.no_repeat_ngram_size, 0, kMaxLength);
  check_number("length_penalty", options.length_penalty, -100, 100);
  check_number("repetition_penalty", options.repetition_penalty, 1e-6, 1e6);
  if (!options.sampling) return;
  check_range("top_k", options.top_k, 0, INT32_MAX);
  check_number("top_p", options.top_p, 0, 1);
  check_number("temperature", options.temperature, 0, 1e6);
}

}  // namespace tfm
