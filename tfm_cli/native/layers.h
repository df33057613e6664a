// The layers of a Transformer except attention: norms, activations, residuals, feed-forward.
//
// M rows, D width of the model, F inner width of the feed-forward layer
//
// Rows are `padded(width)` apart, so that whole vectors can be read and written. The content of the
// padding is undefined.
#pragma once
#include <cmath>

#include "allocation.h"
#include "interface.h"
#include "matrix_product.h"
#include "vectors.h"

namespace tfm {

inline long padded(long width) { return long(round_up(size_t(width), VL)); }

// Return the first `count` lanes of v, followed by zeros.
static TFM_INLINE vf first_lanes(vf v, int count) { return lanes() < broadcast(count) ? v : vf{}; }

// Gain and bias of a layer normalization, y = (x - mean) / sqrt(variance + 1e-5) * gain + bias.
// Source: Ba et al. 2016, arXiv:1607.06450, equation 4.
struct LayerNorm {
  int width = 0;
  Vector<float> gain, bias;  // padded with zeros

  void set(Vector<float>& to, const float* values, int count) {
    width = count;
    to.assign(padded(count), 0.0f);
    std::copy(values, values + count, to.begin());
  }

  // x and y (D,) may be the same row. Return true if the result is finite.
  bool apply(const float* x, float* y) const {
    const int whole = width / VL * VL;
    vf total = {};
    for (int d = 0; d < whole; d += VL) total += load(x + d);
    if (whole < width) total += load_first(x + whole, width - whole);
    const vf mean = broadcast(sum(total) / width);
    vf squares = {};
    for (int d = 0; d < whole; d += VL) {
      const vf off = load(x + d) - mean;
      squares += off * off;
    }
    if (whole < width) {
      const vf off = first_lanes(load(x + whole) - mean, width - whole);
      squares += off * off;
    }
    const float variance = sum(squares) / width;
    const vf scale = broadcast(1 / std::sqrt(variance + 1e-5f));
    for (int d = 0; d < width; d += VL)
      store(y + d, (load(x + d) - mean) * scale * load(&gain[d]) + load(&bias[d]));
    return std::isfinite(variance);
  }
};

// Store VL results of a row after a ReLU. NaN stays NaN.
struct StoreRelu {
  float* y;
  long stride;
  TFM_INLINE void operator()(int row, int column, vf v) const { store(y + row * stride + column, max(vf{}, v)); }
};

// Working memory of one thread.
struct Scratch {
  Buffer rows, projected, attended, inner, normed, scores;
  RowBuffer inputs;
  bool is_finite = true;  // false after a normalized row was not finite

  template <class Epilogue>
  void product(const float* x, long stride, int M, const Linear& linear, Epilogue epilogue) {
    multiply(inputs.rows(x, stride, M, linear), M, linear, epilogue);
  }

  void normalize(const LayerNorm& norm, const float* x, float* y, long stride, int M) {
    for (int m = 0; m < M; m++) is_finite &= norm.apply(x + m * stride, y + m * stride);
  }

  size_t bytes() const {
    return rows.bytes() + projected.bytes() + attended.bytes() + inner.bytes() + normed.bytes() + scores.bytes() + inputs.bytes();
  }
  void release() {
    for (Buffer* buffer : {&rows, &projected, &attended, &inner, &normed, &scores}) buffer->release();
    inputs.release();
  }
};

// A sub-layer f with its residual connection: norm(x + f(x)), or with `is_pre` x + f(norm(x)).
// With DeepNorm, f is divided by alpha in its last matrix.
// Source: Vaswani et al. 2017, section 3.1; pre-norm: Xiong et al. 2020, arXiv:2002.04745.
struct Residual {
  LayerNorm norm;
  bool is_pre = false;

  // Return the input of the sub-layer for x (M, D).
  const float* enter(Scratch& scratch, const float* x, int M) const {
    if (!is_pre) return x;
    const long stride = padded(norm.width);
    float* y = scratch.normed.get<float>(M * stride);
    scratch.normalize(norm, x, y, stride, M);
    return y;
  }

  // Normalize x (M, D), to which the sub-layer's output has been added, if the norm is post.
  void leave(Scratch& scratch, float* x, int M) const {
    if (!is_pre) scratch.normalize(norm, x, x, padded(norm.width), M);
  }
};

// The feed-forward layer: outer(activation(inner(x))), at each position separately.
// Source: Vaswani et al. 2017, equation 2; SwiGLU: Shazeer 2020, arXiv:2002.05202.
struct FeedForward {
  Linear inner, outer;
  Residual residual;
  int activation = TFM_RELU;
  int width = 0, inner_width = 0;  // D, F

  // Map x (M, D) in place.
  void apply(Scratch& scratch, float* x, int M) const {
    const long stride = padded(width);
    const bool is_gated = activation == TFM_SWIGLU;
    const long wide = padded(is_gated ? 2 * inner_width : inner_width);
    float* y = scratch.inner.get<float>(size_t(M * wide));  // (M, F), or (M, 2F) with a gate
    const float* seen = residual.enter(scratch, x, M);
    if (activation == TFM_RELU) {
      scratch.product(seen, stride, M, inner, StoreRelu{y, wide});
    } else {
      scratch.product(seen, stride, M, inner, Store{y, wide});
      for (int m = 0; m < M; m++) activate(y + m * wide);  // (M, 2F) → (M, F) with a gate
    }
    scratch.product(y, wide, M, outer, Add{x, stride});
    residual.leave(scratch, x, M);
  }

 private:
  // Apply the activation to a row; with a gate, swish(gate) * value, where F gates precede F values.
  void activate(float* y) const {
    const int whole = inner_width / VL * VL, rest = inner_width - whole;
    if (activation == TFM_GELU) {
      for (int f = 0; f < inner_width; f += VL) store(y + f, gelu(load(y + f)));
    } else if (activation == TFM_SWISH) {
      for (int f = 0; f < inner_width; f += VL) store(y + f, swish(load(y + f)));
    } else {
      for (int f = 0; f < whole; f += VL) store(y + f, swish(load(y + f)) * load(y + inner_width + f));
      // The values begin after the last gate.
      if (rest > 0)
        store_first(y + whole, swish(load_first(y + whole, rest)) * load_first(y + inner_width + whole, rest), rest);
    }
  }
};

}  // namespace tfm
