// Teacher forcing: log-probabilities and attention of given pairs of source and target.
//
// B pairs, S source tokens, T target tokens, D width
#pragma once
#include <algorithm>

#include "transformer.h"

namespace tfm {

// Maximum rows of the decoder at a time, and maximum pairs whose sources are cached at a time.
constexpr int FORCED_ROWS = 256;
constexpr int FORCED_PAIRS = 32;

// Compute the results of tfm_score of interface.h, for a checked batch.
inline void score(const Transformer& model, State& state, const TfmBatch& batch, const int32_t* target_ids,
                  const int32_t* target_lengths, float* log_probabilities, int layer, float* attention) {
  const int D = model.options().width;
  TfmBatch part = batch;
  Vector<Group> groups;
  Vector<int32_t> read, written;  // tokens of each row: the last, and the next one
  Vector<float*> weights;
  Buffer hidden;
  auto flush = [&] {
    const int R = int(groups.size());
    if (R == 0) return;
    float* x = hidden.get<float>(size_t(R) * size_t(D));  // (R, D)
    const AttentionProbe probe{layer, weights.data()};
    model.step(state, groups.data(), R, read.data(), nullptr, x, attention ? &probe : nullptr);
    if (log_probabilities) {
      model.output().log_probabilities(state.output, x, R, written.data(), log_probabilities);
      if (!std::all_of(log_probabilities, log_probabilities + R, [](float p) { return std::isfinite(p); })) refuse_non_finite();
      log_probabilities += R;
    }
    groups.clear();
    read.clear();
    written.clear();
    weights.clear();
  };
  for (int from = 0; from < batch.num_segments; from += part.num_segments) {
    part.num_segments = std::min(FORCED_PAIRS, batch.num_segments - from);
    part.source_lengths = batch.source_lengths + from;
    model.encode(state, part, target_lengths + from, 1);
    for (int b = 0; b < part.num_segments; b++) {
      const int S = part.source_lengths[b], T = target_lengths[from + b];
      for (int t = 0; t <= T; t++) {
        groups.push_back({b, int(groups.size()), 1, t});
        read.push_back(t > 0 ? target_ids[t - 1] : model.options().start_id);
        written.push_back(t < T ? target_ids[t] : model.options().eos_id);
        if (attention) {
          std::fill(attention, attention + S, 0.0f);
          weights.push_back(attention);
          attention += S;
        }
        if (groups.size() == size_t(FORCED_ROWS)) flush();
      }
      target_ids += T;
      part.source_ids += S;
    }
    flush();
  }
}

}  // namespace tfm
