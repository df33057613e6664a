// Embeddings of tokens.
//
// V vocabulary, D width
#pragma once
#include "allocation.h"
#include "matrix_product.h"
#include "vectors.h"

namespace tfm {

// Copy row n, the weights of one output, of a packed matrix (N, K) to x (K,).
inline void packed_row(const Linear& matrix, int n, float* x) {
  const int32_t* from = matrix.weights + size_t(n / NR) * size_t(matrix.steps) * NR + n % NR;
  for (int k = 0; k < matrix.K; from += NR) {
    if (matrix.precision == Precision::fp32) {
      std::memcpy(x + k++, from, 4);
    } else if (matrix.precision == Precision::bf16) {
      const uint32_t pair = uint32_t(*from);
      x[k++] = from_bf16(uint16_t(pair));
      if (k < matrix.K) x[k++] = from_bf16(uint16_t(pair >> 16));
    } else {
      int8_t four[4];
      std::memcpy(four, from, 4);
      for (int i = 0; i < 4 && k < matrix.K; i++) x[k++] = float(four[i]) * matrix.scales[n];
    }
  }
}

class Embedding {
 public:
  // Use the rows of the output layer's matrix (V, D), which is packed for products.
  void share(const Linear* matrix) { shared = matrix; }

  // Copy the rows of a separate matrix (V, D); in int8 with a scale for each row.
  void pack(Arena& arena, const float* data, int V, int D, Precision p) {
    width = D;
    precision = p;
    const size_t size = size_t(V) * size_t(D);
    if (p == Precision::int8) {
      bytes = arena.take<int8_t>(size);
      scales = arena.take<float>(size_t(V));
      for (int v = 0; v < V; v++) scales[v] = quantize_weights(data + size_t(v) * size_t(D), D, bytes + size_t(v) * size_t(D));
    } else if (p == Precision::bf16) {
      halves = arena.take<uint16_t>(size);
      for (size_t i = 0; i < size; i++) halves[i] = to_bf16(data[i]);
    } else {
      floats = arena.take<float>(size);
      std::memcpy(floats, data, size * sizeof(float));
    }
  }

  // Copy an int8 matrix, given its bytes (V, D) and scales (V,).
  void pack_int8(Arena& arena, const int8_t* rows, const float* row_scales, int V, int D) {
    width = D;
    precision = Precision::int8;
    bytes = arena.take<int8_t>(size_t(V) * size_t(D));
    scales = arena.take<float>(size_t(V));
    std::memcpy(bytes, rows, size_t(V) * size_t(D));
    std::memcpy(scales, row_scales, size_t(V) * sizeof(float));
  }

  // Store scale * the embedding of a token in x (D,).
  void look_up(int id, float scale, float* x) const {
    if (shared != nullptr) {
      packed_row(*shared, id, x);
      for (int d = 0; d < shared->K; d++) x[d] *= scale;
      return;
    }
    const size_t at = size_t(id) * size_t(width);
    if (precision == Precision::int8)
      for (int d = 0; d < width; d++) x[d] = float(bytes[at + size_t(d)]) * scales[id] * scale;
    else if (precision == Precision::bf16)
      for (int d = 0; d < width; d++) x[d] = from_bf16(halves[at + size_t(d)]) * scale;
    else
      for (int d = 0; d < width; d++) x[d] = floats[at + size_t(d)] * scale;
  }

 private:
  const Linear* shared = nullptr;
  int width = 0;  // D
  Precision precision = Precision::fp32;
  float* floats = nullptr;
  uint16_t* halves = nullptr;
  int8_t* bytes = nullptr;
  float* scales = nullptr;  // (V,) of the bytes
};

}  // namespace tfm
