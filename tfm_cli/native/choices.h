// Functions of a row of logits: its log-sum-exp, its largest elements, a token sampled from it.
//
// N tokens, C of them selected, M models
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "allocation.h"
#include "vectors.h"

namespace tfm {

// Return log(x) of a positive number; NaN stays NaN. Source: logf of the Cephes library (Moshier).
static TFM_INLINE vf log(vf x) {
  const vu bits = (vu)x;
  vi e = (vi)(bits >> 23) - 126;                       // x = m 2^e
  vf m = (vf)((bits & 0x007fffffu) | 0x3f000000u);     // in [0.5, 1)
  const vi is_small = m < 0.70710678118654752f;        // -1 for yes
  e += is_small;
  m = is_small ? m + m - 1.0f : m - 1.0f;
  const vf z = m * m;
  vf p = multiply_add(m, broadcast(7.0376836292e-2f), broadcast(-1.1514610310e-1f));
  p = multiply_add(p, m, broadcast(1.1676998740e-1f));
  p = multiply_add(p, m, broadcast(-1.2420140846e-1f));
  p = multiply_add(p, m, broadcast(1.4249322787e-1f));
  p = multiply_add(p, m, broadcast(-1.6668057665e-1f));
  p = multiply_add(p, m, broadcast(2.0000714765e-1f));
  p = multiply_add(p, m, broadcast(-2.4999993993e-1f));
  p = multiply_add(p, m, broadcast(3.3333331174e-1f));
  const vf n = __builtin_convertvector(e, vf);
  vf y = m * z * p;
  y = multiply_add(n, broadcast(-2.12194440e-4f), y);
  y = multiply_add(z, broadcast(-0.5f), y);
  y = multiply_add(n, broadcast(0.693359375f), m + y);
  return x == x ? y : x;
}

// log(sum of e^x) as the sum of two parts, the larger first. It is not finite if a value is NaN or +inf,
// or all are -inf.
struct LogSumExp {
  float largest, rest;

  float total() const { return largest + rest; }
  bool is_finite() const { return std::isfinite(largest) && std::isfinite(rest); }
};

// Return the largest element; NaN may be ignored.
inline float largest_of(const float* x, int count) {
  const int whole = count / VL * VL;
  vf tops = broadcast(-kInfinity);
  for (int i = 0; i < whole; i += VL) tops = max(tops, load(x + i));
  float top = largest(tops);
  for (int i = whole; i < count; i++) top = std::max(top, x[i]);
  return top;
}

// Return the log-sum-exp of x (N,).
inline LogSumExp log_sum_exp(const float* x, int count) {
  const int whole = count / VL * VL;
  const float top = largest_of(x, count);
  double sum_of_blocks = 0;  // single precision only within a block
  constexpr int block = 32 * VL;
  for (int begin = 0; begin < whole; begin += block) {
    vf terms = {};
    for (int i = begin; i < std::min(whole, begin + block); i += VL) terms += exp(load(x + i) - top);
    sum_of_blocks += sum(terms);
  }
  if (whole < count) {
    vf terms = exp(load_first(x + whole, count - whole) - top);
    for (int i = 0; i < count - whole; i++) sum_of_blocks += terms[i];
  }
  return {top, float(std::log(sum_of_blocks))};
}

// Convert one row of logits (N,) of each of M models to log-probabilities, in place, and store the
// logarithm of their mean probabilities in the first row. Source: `decoding/ensemble.py`.
inline void log_mean(float* const* rows, int num_models, int count) {
  for (int m = 0; m < num_models; m++) {
    const LogSumExp total = log_sum_exp(rows[m], count);
    for (int i = 0; i < count; i++) rows[m][i] = (rows[m][i] - total.largest) - total.rest;
  }
  const float log_models = float(std::log(double(num_models)));
  for (int i = 0; i < count; i += VL) {
    const int width = std::min(VL, count - i);
    const auto values = [&](int m) { return width == VL ? load(rows[m] + i) : load_first(rows[m] + i, width); };
    vf top = values(0);
    for (int m = 1; m < num_models; m++) top = max(top, values(m));
    vf total = {};
    for (int m = 0; m < num_models; m++) total += exp(values(m) - top);
    vf mean = top + log(total) - log_models;
    mean = top == -kInfinity ? top : mean;
    if (width == VL) store(rows[0] + i, mean);
    else store_first(rows[0] + i, mean, width);
  }
}

struct Choice {
  float value;
  int32_t index;
};
// Return true if `one` has the larger value, or an equal value and a lower index.
inline bool comes_before(const Choice& one, const Choice& other) {
  return one.value > other.value || (one.value == other.value && one.index < other.index);
}

// Find the `wanted` largest of values (N,) above -inf, in order; fewer if there are no more.
inline void find_largest(const float* values, int count, int wanted, Vector<Choice>& found) {
  found.clear();
  if (wanted < 1) return;
  const size_t capacity = size_t(wanted) + size_t(std::max(wanted, 32));
  float bar = -kInfinity;  // the threshold for further values
  const auto note = [&](int index) {
    if (!(values[index] > bar)) return;
    found.push_back({values[index], index});
    if (found.size() < capacity) return;
    std::nth_element(found.begin(), found.begin() + (wanted - 1), found.end(), comes_before);
    found.resize(size_t(wanted));
    bar = found.back().value;  // equal values that follow have higher indices
  };
  int i = 0;
  for (; i + VL <= count; i += VL) {
    const vf v = load(values + i);
    if (!any_at_least(v, broadcast(bar))) continue;
    for (int j = 0; j < VL; j++) note(i + j);
  }
  for (; i < count; i++) note(i);
  const auto end = found.begin() + std::min(wanted, int(found.size()));
  std::partial_sort(found.begin(), end, found.end(), comes_before);
  found.erase(end, found.end());
}

// Select an index in logits (N,) by a number in [0, 1); -1 if no token can be drawn.
//
// The number is an argument of the inverse of the cumulative distribution of the remaining tokens, which
// are in the order of their ids. Source: `decoding/sampling.py`.
class Draw {
 public:
  int operator()(const float* logits, int count, double number, double temperature, int top_k, double top_p) {
    if (!weigh(logits, count, temperature)) return -1;
    keep_likeliest(logits, count, top_k, top_p);
    return index_at(number, count);
  }

 private:
  static constexpr int kBlock = 64;

  // Weights (N,) relative to the largest, which is 1 at any temperature.
  bool weigh(const float* logits, int count, double temperature) {
    constexpr double min_temperature = 1e-6;  // in effect deterministic
    constexpr float min_exponent = -87;       // less likely tokens have no weight
    const float top = largest_of(logits, count);
    if (!std::isfinite(top)) return false;
    const float divisor = float(std::max(temperature, min_temperature));
    weights_.resize(round_up(size_t(count), kBlock));
    for (int i = 0; i < count; i += VL) {
      const vf logit = count - i < VL ? load_first(logits + i, count - i) : load(logits + i);
      const vf exponent = (logit - top) / divisor;
      store(&weights_[size_t(i)], exponent >= min_exponent ? exp(exponent) : vf{});
    }
    std::fill(weights_.begin() + count, weights_.end(), 0.0f);
    return true;
  }
  double weight(const Choice& each) const { return weights_[size_t(each.index)]; }

  // Clear all weights except those of the `top_k` likeliest tokens, and of these the fewest likeliest whose
  // mass reaches the share `top_p`. Source: Holtzman et al. 2020, arXiv:1904.09751.
  void keep_likeliest(const float* logits, int count, int top_k, double top_p) {
    const bool is_few = top_k > 0 && top_k < count;
    if (!is_few && top_p >= 1) return;
    if (is_few) find_largest(logits, count, top_k, kept_);
    if (top_p < 1) {
      double share = 0;
      if (is_few) {
        for (const Choice& each : kept_) share += top_p * weight(each);
      } else {
        for (int i = 0; i < count; i++) share += top_p * double(weights_[size_t(i)]);
        find_largest(logits, count, kBlock, kept_);  // usually sufficient
        double mass = 0;
        for (const Choice& each : kept_) mass += weight(each);
        if (mass < share) {
          kept_.clear();
          for (int i = 0; i < count; i++)
            if (weights_[size_t(i)] > 0) kept_.push_back({logits[i], i});
        }
      }
      keep_share(share);
    }
    const Choice last = *std::max_element(kept_.begin(), kept_.end(), comes_before);
    for (int i = 0; i < count; i++)
      if (comes_before(last, {logits[i], i})) weights_[size_t(i)] = 0;
  }

  // Truncate the kept tokens, in order of probability, after the one with which their mass reaches the
  // share. They are sorted only as far as necessary.
  void keep_share(double share) {
    size_t begin = 0, end = kept_.size();
    double before = 0;
    while (end - begin > 1) {
      const size_t middle = begin + (end - begin) / 2;
      std::nth_element(kept_.begin() + long(begin), kept_.begin() + long(middle), kept_.begin() + long(end), comes_before);
      double mass = before;
      for (size_t i = begin; i < middle; i++) mass += weight(kept_[i]);
      if (mass >= share) {
        end = middle;
      } else {
        begin = middle;
        before = mass;
      }
    }
    kept_.resize(end);
  }

  // Return the first index whose cumulative weight exceeds the number; the last with any weight if
  // rounding leaves none.
  int index_at(double number, int count) const {
    double whole = 0;
    for (int i = 0; i < count; i += kBlock) whole += block(i);
    const double goal = whole * number;
    double end = 0;
    for (int from = 0; from < count; from += kBlock) {
      const double mass = block(from);
      if (end + mass <= goal) {
        end += mass;
        continue;
      }
      for (int i = from; i < from + kBlock; i++) {
        end += double(weights_[size_t(i)]);
        if (end > goal) return i;
      }
    }
    int last = count - 1;
    while (weights_[size_t(last)] == 0) last--;  // ends, since the likeliest token has a weight
    return last;
  }
  // Return the sum of the weights of a block.
  double block(int from) const {
    double sums[4] = {};
    for (int i = 0; i < kBlock; i += 4)
      for (int j = 0; j < 4; j++) sums[j] += double(weights_[size_t(from + i + j)]);
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
  }

  Vector<float> weights_;  // (N,), and zeros
  Vector<Choice> kept_;
};

}  // namespace tfm
