// The output layer for only some tokens, those of the shortlists of a batch.
//
// U tokens that some segment may write, R rows, D width
#pragma once
#include <algorithm>
#include <cstdint>

#include "allocation.h"
#include "matrix_product.h"
#include "output_layer.h"

namespace tfm {

class OutputPart {
 public:
  // Copy the columns of these tokens (U,). Each logit has the same bits as in the whole layer, since the
  // order of the sum of a column does not depend on its position.
  void gather(const Linear& from, const Vector<int32_t>& ids) {
    part_ = from;
    part_.N = int(ids.size());
    part_.panels = (part_.N + NR - 1) / NR;
    const size_t columns = size_t(part_.panels) * NR;
    part_.weights = weights_.get<int32_t>(columns * size_t(part_.steps));
    part_.bias = bias_.get<float>(columns);
    if (from.scales) part_.scales = scales_.get<float>(columns);
    if (from.offsets) part_.offsets = offsets_.get<int32_t>(columns);
    for (int panel = 0; panel < part_.panels; panel++) {
      const int32_t* sources[NR];
      for (int j = 0; j < NR; j++) {
        // The results of the last panel's padding are never read.
        const int column = panel * NR + j, id = ids[size_t(std::min(column, part_.N - 1))];
        sources[j] = from.weights + size_t(id / NR) * size_t(from.steps) * NR + id % NR;
        part_.bias[column] = from.bias[id];
        if (from.scales) part_.scales[column] = from.scales[id];
        if (from.offsets) part_.offsets[column] = from.offsets[id];
      }
      int32_t* to = part_.weights + size_t(panel) * size_t(part_.steps) * NR;
      for (int step = 0; step < part_.steps; step++, to += NR)
        for (int j = 0; j < NR; j++) to[j] = sources[j][size_t(step) * NR];
    }
  }

  // Write logits (R, U) of hidden states (R, D); rows of `out` are `stride` apart, a whole number of vectors.
  void logits(OutputScratch& scratch, const float* hidden, int R, float* out, long stride) const {
    Store epilogue{out, stride};
    multiply(scratch.inputs.rows(hidden, part_.K, R, part_), R, part_, epilogue);
  }

  size_t bytes() const { return weights_.bytes() + bias_.bytes() + scales_.bytes() + offsets_.bytes(); }

 private:
  Linear part_;
  Buffer weights_, bias_, scales_, offsets_;
};

}  // namespace tfm
