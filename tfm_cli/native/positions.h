// Position encodings: sinusoids, which are added to embeddings, and rotations of queries and keys. Both
// are computed in double precision, since sine and cosine of large angles lose digits in single.
//
// D width, E width of a head
#pragma once
#include <algorithm>
#include <cmath>

#include "allocation.h"
#include "interface.h"

namespace tfm {

// Sinusoids of positions in the layouts of `positions`, computed on demand.
//
// PE(pos, 2i) = sin(pos / 10000^(2i / D)) and PE(pos, 2i + 1) is its cosine. In halves all sines
// precede all cosines; Marian's angles are pos / 10000^(i / (D / 2 - 1)).
// Source: Vaswani et al. 2017, section 3.5; Marian 1.12, `sinusoidalPositionEmbeddings`.
class PositionTable {
 public:
  const float* of(int position, int width, int layout) {
    if (width != this->width || layout != this->layout) start(width, layout);
    while ((int)(table.size() / width) <= position) append();
    return &table[(size_t)position * width];
  }

  size_t bytes() const { return table.capacity() * sizeof(float); }

 private:
  void start(int new_width, int new_layout) {
    width = 0;  // recompute later if the following allocation fails
    table.clear();
    const int half = (new_width + 1) / 2;
    divisors.resize(half);
    for (int i = 0; i < half; i++) {
      const double exponent = new_layout == TFM_SINUSOIDAL_MARIAN
                                  ? (double)i / std::max(new_width / 2 - 1, 1)
                                  : (double)(2 * i) / new_width;
      divisors[i] = std::pow(10000.0, exponent);
    }
    width = new_width;
    layout = new_layout;
  }

  void append() {
    const int position = table.size() / width, half = divisors.size();
    const size_t at = table.size();
    table.resize(at + width);
    for (int i = 0; i < half; i++) {
      const double angle = position / divisors[i];
      const bool is_paired = layout == TFM_SINUSOIDAL;
      const int sine = is_paired ? 2 * i : i, cosine = is_paired ? 2 * i + 1 : half + i;
      table[at + sine] = (float)std::sin(angle);
      if (cosine < width) table[at + cosine] = (float)std::cos(angle);
    }
  }

  int width = 0, layout = -1;
  Vector<double> divisors;
  Vector<float> table;  // (positions, D)
};

// Cosines and sines of the rotations of heads at each position, computed on demand.
// Source: Su et al. 2021, arXiv:2104.09864, section 3.4.2.
class RotationTable {
 public:
  // Rotate each pair of even and odd elements of these heads, (heads, E), by the angles of a position.
  void rotate(float* x, int heads, int width, int position) {
    if (width != this->width) {
      this->width = width;
      table.clear();
    }
    while ((int)(table.size() / width) <= position) append();
    const float* cosine = &table[(size_t)position * width];
    const float* sine = cosine + width / 2;
    for (int h = 0; h < heads; h++, x += width)
      for (int i = 0; i < width / 2; i++) {
        const float even = x[2 * i], odd = x[2 * i + 1];
        x[2 * i] = even * cosine[i] - odd * sine[i];
        x[2 * i + 1] = even * sine[i] + odd * cosine[i];
      }
  }

  size_t bytes() const { return table.capacity() * sizeof(float); }

 private:
  void append() {
    const int position = table.size() / width;
    const size_t at = table.size();
    table.resize(at + width);
    for (int i = 0; i < width / 2; i++) {
      const double angle = position / std::pow(10000.0, (double)(2 * i) / width);
      table[at + i] = (float)std::cos(angle);
      table[at + width / 2 + i] = (float)std::sin(angle);
    }
  }

  int width = 0;
  Vector<float> table;  // (positions, E / 2 cosines and E / 2 sines)
};

}  // namespace tfm
