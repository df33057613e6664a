// What is made of a row of logits: its log-sum-exp, its largest, a piece that is drawn from it.
//
// N pieces, C of them that are wanted, M models
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "allocation.h"
#include "vectors.h"

namespace tfm {

// log(x) of a positive number; NaN stays NaN. Source: logf of the Cephes library (Moshier).
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

// log(sum of e^x) in two parts, the larger first. Of no use, and not finite, where a value is NaN or
// +inf or all are -inf.
struct LogSumExp {
  float largest, rest;

  float total() const { return largest + rest; }
  bool is_finite() const { return std::isfinite(largest) && std::isfinite(rest); }
};

// Of x (N,).
inline LogSumExp log_sum_exp(const float* x, int count) {
  const int whole = count / VL * VL;
  vf tops = broadcast(-kInfinity);
  for (int i = 0; i < whole; i += VL) tops = max(tops, load(x + i));
  float top = largest(tops);
  for (int i = whole; i < count; i++) top = std::max(top, x[i]);
  double sum_of_blocks = 0;  // single precision adds up no more than a block
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

// One row of logits (N,) for each of M models become log-probabilities, in place, and then the
// logarithm of the mean of their probabilities, in the first row. Source: `decoding/ensemble.py`.
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
  int32_t place;
};
// Larger values first, of equal ones the lower place.
inline bool comes_before(const Choice& one, const Choice& other) {
  return one.value > other.value || (one.value == other.value && one.place < other.place);
}

// The `wanted` largest of values (N,) that are above -inf, in order; fewer if there are no more.
inline void find_largest(const float* values, int count, int wanted, Vector<Choice>& found) {
  found.clear();
  if (wanted < 1) return;
  const size_t room = size_t(wanted) + size_t(std::max(wanted, 32));
  float bar = -kInfinity;  // what a value has to exceed
  const auto note = [&](int place) {
    if (!(values[place] > bar)) return;
    found.push_back({values[place], place});
    if (found.size() < room) return;
    std::nth_element(found.begin(), found.begin() + (wanted - 1), found.end(), comes_before);
    found.resize(size_t(wanted));
    bar = found.back().value;  // whatever equals it from here on has a higher place
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

// The place that a number in [0, 1) draws from logits (N,), and -1 where all are -inf.
//
// The pieces that are left stand in the order of their ids, each as wide as it is likely, and the
// number says how far along them to go. Source: `decoding/sampling.py`.
class Draw {
 public:
  int operator()(const float* logits, int count, double chance, double temperature, int top_k, double top_p) {
    constexpr double coldest = 1e-6;  // no draw is left by then
    float top = -kInfinity;
    for (int i = 0; i < count; i++) top = std::max(top, logits[i]);
    if (!std::isfinite(top)) return -1;
    const double divisor = std::max(temperature, coldest);
    const auto weight = [&](float logit) { return std::exp((double(logit) - double(top)) / divisor); };
    weights_.resize(size_t(count));  // (N,)
    if (top_k == 0 && top_p >= 1) {
      for (int i = 0; i < count; i++) weights_[size_t(i)] = weight(logits[i]);
      return along(chance, nullptr, count);
    }
    keep_likeliest(logits, count, top_k, top_p, weight);
    std::sort(kept_.begin(), kept_.end(), [](const Choice& one, const Choice& other) { return one.place < other.place; });
    for (size_t i = 0; i < kept_.size(); i++) weights_[i] = weight(kept_[i].value);
    return along(chance, kept_.data(), int(kept_.size()));
  }

 private:
  // The `top_k` likeliest, and of these the fewest whose mass reaches the share `top_p`.
  // Source: Holtzman et al. 2020, arXiv:1904.09751.
  template <class Weight>
  void keep_likeliest(const float* logits, int count, int top_k, double top_p, Weight weight) {
    const int most = top_k == 0 ? count : std::min(top_k, count);
    double share = kInfinity;
    if (top_p < 1 && most == count) {
      double whole = 0;
      for (int i = 0; i < count; i++) whole += weight(logits[i]);
      share = top_p * whole;
    }
    int wanted = most;
    if (top_k == 0) wanted = std::min(64, count);
    for (;; wanted = int(std::min<int64_t>(int64_t(wanted) * 8, most))) {
      find_largest(logits, count, wanted, kept_);
      if (top_p >= 1) return;
      if (most < count) {
        double whole = 0;
        for (const Choice& each : kept_) whole += weight(each.value);
        share = top_p * whole;
      }
      double mass = 0;
      for (size_t i = 0; i < kept_.size(); i++) {
        mass += weight(kept_[i].value);
        if (mass < share) continue;
        kept_.resize(i + 1);
        return;
      }
      if (wanted == most) return;
    }
  }

  // The first place whose end, along all weights, is beyond the chance; the last with any mass where
  // rounding leaves none.
  int along(double chance, const Choice* kept, int count) const {
    double whole = 0;
    for (int i = 0; i < count; i++) whole += weights_[size_t(i)];
    const double goal = whole * chance;
    double end = 0;
    int last = -1;
    for (int i = 0; i < count; i++) {
      const double next = end + weights_[size_t(i)];
      if (next > end) last = i;
      end = next;
      if (end > goal) break;
    }
    return last < 0 || !kept ? last : kept[last].place;
  }

  Vector<double> weights_;
  Vector<Choice> kept_;
};

}  // namespace tfm
