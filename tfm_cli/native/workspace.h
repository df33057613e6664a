// Caches, working memory and results of one thread.
//
// B segments, n hypotheses of all segments
#pragma once
#include "allocation.h"
#include "interface.h"
#include "search.h"

struct TfmWorkspace {
  tfm::SearchMemory memory;
  tfm::Buffer fault_stack;
  tfm::Vector<int32_t> num_hypotheses;               // (B,)
  tfm::Vector<int32_t> lengths, ids;                 // (n,), and the sum of the lengths
  tfm::Vector<double> log_probabilities, scores;     // (n,)
  tfm::Vector<float> token_log_probs;

  int64_t bytes() const {
    const size_t numbers = num_hypotheses.capacity() + lengths.capacity() + ids.capacity() + token_log_probs.capacity();
    return int64_t(memory.bytes() + fault_stack.bytes() + 4 * numbers + 8 * (log_probabilities.capacity() + scores.capacity()));
  }
  void trim() {
    memory.release();
    num_hypotheses = lengths = ids = {};
    log_probabilities = scores = {};
    token_log_probs = {};
  }

  // Concatenate the hypotheses of all segments.
  TfmResult result(const tfm::Vector<tfm::Vector<tfm::Hypothesis>>& found, bool has_token_log_probs) {
    num_hypotheses.clear();
    lengths.clear();
    ids.clear();
    log_probabilities.clear();
    scores.clear();
    token_log_probs.clear();
    for (const auto& hypotheses : found) {
      num_hypotheses.push_back(int32_t(hypotheses.size()));
      for (const tfm::Hypothesis& each : hypotheses) {
        lengths.push_back(int32_t(each.ids.size()));
        ids.insert(ids.end(), each.ids.begin(), each.ids.end());
        log_probabilities.push_back(each.log_probability);
        scores.push_back(each.score);
        token_log_probs.insert(token_log_probs.end(), each.token_log_probs.begin(), each.token_log_probs.end());
      }
    }
    return {int32_t(found.size()), num_hypotheses.data(), lengths.data(), ids.data(), log_probabilities.data(),
            scores.data(), has_token_log_probs ? token_log_probs.data() : nullptr};
  }
};
