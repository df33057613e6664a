// The output layer: logits of the next token, or the largest of them.
//
// The largest logits are found while the logits of a few tokens are in registers; logits are written to
// memory only if requested.
//
// R rows, D width, V vocabulary
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "allocation.h"
#include "matrix_product.h"
#include "vectors.h"

namespace tfm {

// The error of a logit in 8 bits is the sum of two sums of rounding errors, each uniform over a step. One
// logit in 10^15 is off by more than 8 standard deviations.
constexpr float kDeviations = 8;

// Working memory of the output layer, of one thread.
struct OutputScratch {
  struct Candidate {
    float logit;
    int32_t id;
  };
  // Tokens of a row that may have the largest logit, and lower bounds of their logits.
  struct Screened {
    float bound, error;
    Vector<Candidate> found;
  };
  RowBuffer inputs;
  Vector<Screened> screened;
  Buffer rows, candidates;

  size_t bytes() const { return inputs.bytes() + rows.bytes() + candidates.bytes(); }
  void release() {
    inputs.release();
    rows.release();
    candidates.release();
    screened = Vector<Screened>();
  }
};

class OutputLayer {
 public:
  void pack(Arena& arena, const float* data, int V, int D, Precision precision);
  void pack_int8(Arena& arena, const int8_t* bytes, const float* scales, int V, int D);
  void set_bias(const float* values);
  // Exclude these tokens from the largest logits.
  void ban(const int32_t* ids, int count);
  void finish(Arena& arena);

  // Return the matrix (V, D), whose rows are also the target embeddings if they are tied.
  const Linear& matrix() const { return layer; }
  int size() const { return layer.N; }

  // Write all logits (R, V) of hidden states (R, D), those of banned tokens included; rows of `out` are
  // `stride` apart, a whole number of vectors.
  void logits(OutputScratch& scratch, const float* hidden, int R, float* out, long stride) const;

  // Find the ids (R,) of the largest logits, the lowest id of equal ones; return false if scores are not finite.
  bool best(OutputScratch& scratch, const float* hidden, int R, int32_t* ids) const;

  // Find the `count` largest logits of each row and their ids, (R, count), largest first and the lowest
  // id of equal ones first, padded with -inf and -1. The log-sum-exp (R,) includes banned tokens unless
  // `renormalize`; it is NaN if a score is not finite.
  void top_k(OutputScratch& scratch, const float* hidden, int R, int count, bool renormalize,
               float* log_sum_exp, float* values, int32_t* ids) const;

  // Compute log-probabilities (R,) of one token of each row, ids (R,), as in `top_k`.
  void log_probabilities(OutputScratch& scratch, const float* hidden, int R, const int32_t* ids,
                         float* out) const;

  // Compute logits (n,) of these tokens, ascending, of one row.
  void logits_of(OutputScratch& scratch, const float* hidden, const int32_t* ids, int n, float* out) const;

 private:
  struct Screen;
  struct Largest;
  struct TopKRow;
  struct TopK;

  // Return only one panel of the matrix.
  static Linear panel_of(const Linear& from, int panel);
  bool best_by_screen(OutputScratch& scratch, const float* hidden, int R, int32_t* ids) const;
  int likeliest(const Rows& row, const OutputScratch::Screened& screened) const;

  Linear layer;    // in the model's precision
  Linear masked;   // the same with a bias of -inf for banned tokens
  Linear screen;   // the same in int8, if the model's precision is higher
  bool has_screen = false, is_finite = true;
  float max_norm = 0, max_scale = 0;  // maxima over rows of the norm and of the scale, times kDeviations / sqrt(12)
  Vector<uint8_t> is_banned;      // (V,)
};

// ---- weights ----

inline void OutputLayer::pack(Arena& arena, const float* data, int V, int D, Precision precision) {
  layer.pack(arena, data, V, D, precision, -kInfinity);
  is_banned.assign(size_t(V), 0);
  has_screen = precision != Precision::int8;
  if (!has_screen) return;
  screen.pack(arena, data, V, D, Precision::int8, -kInfinity);
  for (int v = 0; v < V; v++) {
    vf squares = {};
    const float* row = data + size_t(v) * size_t(D);
    int d = 0;
    for (; d + VL <= D; d += VL) squares += load(row + d) * load(row + d);
    if (d < D) squares += load_first(row + d, D - d) * load_first(row + d, D - d);
    max_norm = std::max(max_norm, sum(squares));
    max_scale = std::max(max_scale, screen.scales[v]);
  }
  const float deviations = kDeviations / std::sqrt(12.0f);
  max_norm = std::sqrt(max_norm) * deviations;
  max_scale *= deviations;
}

inline void OutputLayer::pack_int8(Arena& arena, const int8_t* bytes, const float* scales, int V, int D) {
  layer.pack_int8(arena, bytes, scales, V, D, -kInfinity);
  is_banned.assign(size_t(V), 0);
  has_screen = false;
}

inline void OutputLayer::set_bias(const float* values) {
  layer.set_bias(values);
  if (has_screen) screen.set_bias(values);
}

inline void OutputLayer::ban(const int32_t* ids, int count) {
  for (int i = 0; i < count; i++) is_banned[size_t(ids[i])] = 1;
}

inline void OutputLayer::finish(Arena& arena) {
  masked = layer;
  masked.bias = arena.take<float>(size_t(layer.panels) * NR);
  for (int v = 0; v < layer.panels * NR; v++) {
    const bool is_open = v < layer.N && !is_banned[size_t(v)];
    masked.bias[v] = is_open ? layer.bias[v] : -kInfinity;
    if (has_screen) screen.bias[v] = masked.bias[v];
  }
  const float* scales = has_screen ? screen.scales : layer.scales;
  for (int v = 0; v < layer.N; v++)
    is_finite &= std::isfinite(scales[v]) && std::isfinite(layer.bias[v]);
}

// ---- all logits ----

inline void OutputLayer::logits(OutputScratch& scratch, const float* hidden, int R, float* out, long stride) const {
  Store epilogue{out, stride};
  multiply(scratch.inputs.rows(hidden, layer.K, R, layer), R, layer, epilogue);
}

inline Linear OutputLayer::panel_of(const Linear& from, int panel) {
  Linear part = from;
  const int first = panel * NR;
  part.N = std::min(NR, from.N - first);
  part.panels = 1;
  part.weights += size_t(panel) * size_t(from.steps) * NR;
  part.bias += first;
  if (part.scales != nullptr) part.scales += first;
  if (part.offsets != nullptr) part.offsets += first;
  return part;
}

inline void OutputLayer::logits_of(OutputScratch& scratch, const float* hidden, const int32_t* ids, int n, float* out) const {
  const Rows row = scratch.inputs.rows(hidden, layer.K, 1, layer);
  float logits[NR];
  for (int i = 0, last = -1; i < n; i++) {
    const int panel = ids[i] / NR;
    if (panel != last) {
      Store epilogue{logits, NR};
      multiply(row, 1, panel_of(layer, panel), epilogue);
      last = panel;
    }
    out[i] = logits[ids[i] % NR];
  }
}

// ---- the largest logit ----

// The epilogue that finds the largest logit of each row, the first of equal ones.
struct OutputLayer::Largest {
  struct Row {
    float logit;
    int32_t id;
  };
  Row* rows;
  TFM_INLINE void operator()(int row, int column, vf v) const {
    if (__builtin_expect(any_at_least(v, broadcast(rows[row].logit)), 0)) note(rows[row], column, v);
  }
  static __attribute__((noinline)) void note(Row& row, int column, vf v) {
    for (int j = 0; j < VL; j++)
      if (v[j] > row.logit) row = {v[j], column + j};
  }
};

// The epilogue that collects tokens whose logits in 8 bits are close enough to the largest so far that
// their exact logits may be the largest.
struct OutputLayer::Screen {
  OutputScratch::Screened* rows;
  TFM_INLINE void operator()(int row, int column, vf v) const {
    if (__builtin_expect(any_at_least(v, broadcast(rows[row].bound)), 0)) note(rows[row], column, v);
  }
  static __attribute__((noinline)) void note(OutputScratch::Screened& row, int column, vf v) {
    row.bound = std::max(row.bound, tfm::largest(v) - row.error);
    for (int j = 0; j < VL; j++)
      if (v[j] >= row.bound && v[j] > -kInfinity) row.found.push_back({v[j], column + j});
  }
};

inline bool OutputLayer::best(OutputScratch& scratch, const float* hidden, int R, int32_t* ids) const {
  if (!is_finite) return false;
  if (has_screen) return best_by_screen(scratch, hidden, R, ids);
  Largest::Row* rows = scratch.rows.get<Largest::Row>(size_t(R));
  for (int r = 0; r < R; r++) rows[r] = {-kInfinity, -1};
  Largest epilogue{rows};
  multiply(scratch.inputs.rows(hidden, layer.K, R, masked), R, masked, epilogue);
  for (int r = 0; r < R; r++) {
    if (!std::isfinite(rows[r].logit)) return false;
    ids[r] = rows[r].id;
  }
  return true;
}

inline bool OutputLayer::best_by_screen(OutputScratch& scratch, const float* hidden, int R, int32_t* ids) const {
  const int D = layer.K;
  const Rows rounded = scratch.inputs.rows(hidden, D, R, screen);
  if (scratch.screened.size() < size_t(R)) scratch.screened.resize(size_t(R));
  for (int r = 0; r < R; r++) {
    const float* x = hidden + long(r) * D;
    vf squares = {};
    int d = 0;
    for (; d + VL <= D; d += VL) squares += load(x + d) * load(x + d);
    if (d < D) squares += load_first(x + d, D - d) * load_first(x + d, D - d);
    const float error = std::sqrt(sum(squares)) * max_scale + rounded.scales[r] * max_norm;
    if (!std::isfinite(error)) return false;
    scratch.screened[size_t(r)].error = 2 * error;
    scratch.screened[size_t(r)].bound = -kInfinity;
    scratch.screened[size_t(r)].found.clear();
  }
  Screen epilogue{scratch.screened.data()};
  multiply(rounded, R, screen, epilogue);
  const Rows exact = scratch.inputs.rows(hidden, D, R, masked);
  for (int r = 0; r < R; r++) {
    ids[r] = likeliest(row_of(exact, r, masked), scratch.screened[size_t(r)]);
    if (ids[r] < 0) return false;
  }
  return true;
}

// Return the candidate with the largest logit in the model's precision.
inline int OutputLayer::likeliest(const Rows& row, const OutputScratch::Screened& screened) const {
  int32_t id = -1, remaining = 0;
  for (const auto& candidate : screened.found)
    if (candidate.logit >= screened.bound) {
      remaining++;
      id = candidate.id;
    }
  if (remaining <= 1) return id;
  float logits[NR], max_logit = -kInfinity;
  int last = -1;
  id = -1;
  for (const auto& candidate : screened.found) {
    if (candidate.logit < screened.bound) continue;
    const int panel = candidate.id / NR;
    if (panel != last) {
      Store epilogue{logits, NR};
      multiply(row, 1, panel_of(masked, panel), epilogue);
      last = panel;
    }
    const float logit = logits[candidate.id % NR];
    if (logit > max_logit) {
      max_logit = logit;
      id = candidate.id;
    }
  }
  return std::isfinite(max_logit) ? id : -1;
}

// ---- the largest logits and the log-sum-exp of all ----

// The state of a row: the sum of exponentials so far, relative to the largest logit so far, and the
// largest logits.
struct OutputLayer::TopKRow {
  vf total;
  float largest;
  float bar;  // the threshold of the largest logits
  int wanted, found;
  int32_t forced_id;  // the token whose logit is requested, or -1
  float forced;
  OutputScratch::Candidate* candidates;  // sorted if at most kSorted of them; otherwise unordered

  static constexpr int kSorted = 64;
  // Capacity for `wanted` candidates; a large number is pruned regularly.
  static int capacity(int wanted) { return wanted <= kSorted ? wanted : 2 * wanted + VL; }

  void start(int count, OutputScratch::Candidate* memory, int32_t id = -1) {
    forced_id = id;
    forced = kNaN;
    total = vf{};
    largest = bar = -kInfinity;
    wanted = count;
    found = 0;
    candidates = memory;
  }
  float log_sum_exp() const { return largest + std::log(sum(total)); }

  void add(float logit, int32_t id) {
    if (wanted > kSorted) {
      candidates[found++] = {logit, id};
      return;
    }
    if (found == wanted && !comes_first({logit, id}, candidates[found - 1])) return;
    int i = found < wanted ? found++ : found - 1;
    for (; i > 0 && comes_first({logit, id}, candidates[i - 1]); i--) candidates[i] = candidates[i - 1];
    candidates[i] = {logit, id};
    if (found == wanted) bar = candidates[found - 1].logit;
  }
  // Drop all candidates except the largest ones.
  void prune() {
    if (wanted <= kSorted || found <= wanted) return;
    std::nth_element(candidates, candidates + wanted - 1, candidates + found, comes_first);
    found = wanted;
    bar = candidates[wanted - 1].logit;
  }
  void finish(float* values, int32_t* ids) {
    prune();
    std::sort(candidates, candidates + found, comes_first);
    for (int i = 0; i < wanted; i++) {
      values[i] = i < found ? candidates[i].logit : -kInfinity;
      ids[i] = i < found ? candidates[i].id : -1;
    }
  }
  static bool comes_first(const OutputScratch::Candidate& a, const OutputScratch::Candidate& b) {
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
  }
};

// The epilogue that collects the largest logits of each row, and adds to its sum of exponentials.
struct OutputLayer::TopK {
  TopKRow* rows;
  const uint8_t* is_banned;
  TFM_INLINE void operator()(int row, int column, vf v) const {
    TopKRow& state = rows[row];
    if (__builtin_expect(any_at_least(v, broadcast(state.bar)), 0)) note(state, column, v);
    state.total += tfm::exp(v - state.largest);
    const uint32_t lane = uint32_t(state.forced_id) - uint32_t(column);
    if (__builtin_expect(lane < uint32_t(VL), 0)) state.forced = v[lane];
  }
  __attribute__((noinline)) void note(TopKRow& state, int column, vf v) const {
    const float top = tfm::largest(v);
    if (top > state.largest) {
      if (state.largest > -kInfinity) state.total *= std::exp(state.largest - top);
      state.largest = top;
    }
    for (int j = 0; j < VL; j++)
      if (v[j] >= state.bar && v[j] > -kInfinity && !is_banned[column + j]) state.add(v[j], column + j);
    if (state.wanted > TopKRow::kSorted && state.found > 2 * state.wanted) state.prune();
  }
};

inline void OutputLayer::top_k(OutputScratch& scratch, const float* hidden, int R, int count, bool renormalize,
                               float* log_sum_exp, float* values, int32_t* ids) const {
  TopKRow* rows = scratch.rows.get<TopKRow>(size_t(R));
  const size_t capacity = size_t(TopKRow::capacity(count));
  auto* memory = scratch.candidates.get<OutputScratch::Candidate>(size_t(R) * capacity);
  for (int r = 0; r < R; r++) rows[r].start(count, memory + size_t(r) * capacity);
  const Linear& chosen = renormalize ? masked : layer;
  TopK epilogue{rows, is_banned.data()};
  multiply(scratch.inputs.rows(hidden, layer.K, R, chosen), R, chosen, epilogue);
  for (int r = 0; r < R; r++) {
    log_sum_exp[r] = is_finite ? rows[r].log_sum_exp() : kNaN;
    rows[r].finish(values + long(r) * count, ids + long(r) * count);
  }
}

// ---- the logit of one token and the log-sum-exp of all ----

inline void OutputLayer::log_probabilities(OutputScratch& scratch, const float* hidden, int R, const int32_t* ids,
                                           float* out) const {
  TopKRow* rows = scratch.rows.get<TopKRow>(size_t(R));
  auto* memory = scratch.candidates.get<OutputScratch::Candidate>(size_t(R));
  for (int r = 0; r < R; r++) rows[r].start(1, memory + r, ids[r]);
  TopK epilogue{rows, is_banned.data()};
  multiply(scratch.inputs.rows(hidden, layer.K, R, layer), R, layer, epilogue);
  for (int r = 0; r < R; r++) out[r] = is_finite ? rows[r].forced - rows[r].log_sum_exp() : kNaN;
}

}  // namespace tfm
