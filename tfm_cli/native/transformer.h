// The Transformer of *Attention Is All You Need* (Vaswani et al. 2017, figure 1), one step at a time.
//
// Rows are ragged, so there is no padding and no padding mask: the encoder reads the tokens of all
// segments concatenated, and each row of the decoder has its own length.
//
// B segments, S source tokens, M rows of the encoder, R rows of the decoder, D width, H heads,
// E = D / H, F feed-forward width, V vocabulary, K beam
#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "allocation.h"
#include "attention.h"
#include "embedding.h"
#include "encoder_attention.h"
#include "failure.h"
#include "interface.h"
#include "layers.h"
#include "output_layer.h"
#include "positions.h"

namespace tfm {

// The hypotheses of one segment, which are consecutive rows.
struct Group {
  int32_t segment, first_row, num_rows, position;
};

struct SelfAttention {
  Linear projection;  // query, key, value: (3D, D)
  Linear output;
  Residual residual;
};

struct CrossAttention {
  Linear query;   // (D, D)
  Linear memory;  // key, value: (2D, D)
  Linear output;
  Residual residual;
};

struct EncoderLayer {
  SelfAttention self_attention;
  FeedForward feed_forward;
};

struct DecoderLayer {
  SelfAttention self_attention;
  CrossAttention cross_attention;
  FeedForward feed_forward;
};

// The KV caches of a model for a batch, and working memory, of one thread.
//
// The layout of the decoder's caches is [block of positions][segment][layer][keys, values][head]
// [entry][E], segments with most blocks first, so that the used parts are contiguous, in huge pages.
struct State {
  struct Segment {
    int source_length;  // S
    long memory_at;     // offset of its entries in the memory of each layer
    int rank;           // its position in the order of segments, those with most blocks first
  };
  Vector<Segment> segments;
  int beam = 1;
  long memory_size = 0;            // elements of one layer, keys or values
  long block_size = 0;             // elements of one block of one segment and layer, keys or values
  Vector<long> blocks;             // offset of each block of positions
  Buffer memory_caches, caches;    // of floats or bf16
  PositionTable positions;
  RotationTable encoder_rotations, decoder_rotations;
  Scratch scratch;
  OutputScratch output;

  void release() {
    memory_caches.release();
    caches.release();
    scratch.release();
    output.release();
  }
  size_t bytes() const {
    return memory_caches.bytes() + caches.bytes() + positions.bytes() + encoder_rotations.bytes() +
           decoder_rotations.bytes() + scratch.bytes() + output.bytes();
  }
};

// The output of `step` for the cross-attention weights of one decoder layer, averaged over heads.
struct AttentionProbe {
  int layer;
  float* const* weights;  // (R,) rows of S each
};

class Transformer {
 public:
  explicit Transformer(const TfmModelOptions& options);
  Transformer(const Transformer&) = delete;
  Transformer& operator=(const Transformer&) = delete;

  // Pack a tensor by its name in the state_dict of tfm_cli.model.transformer.Transformer.
  void take(const char* name, const float* data, int64_t rows, int64_t columns);
  // Pack a quantized matrix with a scale for each row; only in int8 models.
  void take_int8(const char* name, const int8_t* bytes, const float* scales, int64_t rows, int64_t columns);
  void finish();

  // Encode the source, and prepare the state for the first step.
  void encode(State& state, const TfmBatch& batch, const int32_t* limits, int beam) const;

  // Compute the inputs (R, D) of the output layer, given the last token of each row.
  //   ancestors: for each row the beam whose cache entry it reads at each position, position + 1 long;
  //   null for beams of 1.
  // Several groups may belong to one segment, at consecutive positions.
  void step(State& state, const Group* groups, int num_groups, const int32_t* tokens,
            const uint8_t* const* ancestors, float* hidden,
            const AttentionProbe* probe = nullptr) const;

  // Exclude tokens from the output.
  void ban(const int32_t* ids, int count) { banned.insert(banned.end(), ids, ids + count); }

  const OutputLayer& output() const { return output_layer; }
  const TfmModelOptions& options() const { return settings; }
  int64_t bytes() const;
  // Return the maximum size of the caches of a segment.
  int64_t segment_bytes(int source_length, int limit, int beam) const;

 private:
  struct Tensor {
    int64_t rows, columns;
    std::function<void(const float*)> take;
    std::function<void(const int8_t*, const float*)> take_int8 = nullptr;  // for the matrices of products
    bool is_there = false;
  };
  Tensor& arriving(const char* name, int64_t rows, int64_t columns);

  void expect(const std::string& name, int64_t rows, int64_t columns,
              std::function<void(const float*)> take);
  void expect_linear(const std::string& name, int64_t rows, int64_t columns,
                     std::vector<std::pair<Linear*, int>> parts, float factor = 1);
  void expect_residual(const std::string& name, Residual& residual);
  void expect_feed_forward(const std::string& name, FeedForward& layer, int inner_width,
                           float factor);
  void expect_norm(const std::string& name, LayerNorm& norm);
  void expect_embeddings();

  void place_blocks(State& state, const int32_t* limits) const;
  long cache_elements(int entries) const;
  bool has_half_caches() const { return settings.precision != TFM_FP32; }
  template <class T>
  void encode(State& state, const TfmBatch& batch) const;
  template <class T>
  void cache_memory(State& state, const float* x, int from, int to) const;
  void encode_rows(State& state, const int* lengths, int num_segments, float* x, int M) const;
  template <class T>
  void step(State& state, const Group* groups, int num_groups, int R,
            const uint8_t* const* ancestors, float* x, const AttentionProbe* probe) const;
  template <class T>
  Cache<T> cache(State& state, int layer, int segment) const;
  template <class T>
  Cache<T> memory_cache(State& state, int layer, int segment) const;
  void embed(State& state, const Embedding& embedding, const Vector<float>& learned, int id,
             int position, float* x) const;

  TfmModelOptions settings;
  int D, encoder_width, decoder_width;  // the latter two of a head
  float embedding_scale;
  Embedding source_embedding, target_embedding;
  Vector<float> source_positions, target_positions;  // learned: (P, D)
  std::vector<EncoderLayer> encoder;
  std::vector<DecoderLayer> decoder;
  LayerNorm encoder_norm, decoder_norm;  // of pre-norm stacks
  OutputLayer output_layer;
  Vector<float> output_bias;
  Vector<int32_t> banned;
  Arena arena;  // holds all of the above
  std::map<std::string, Tensor> tensors;
  std::map<Linear*, Vector<float>> biases;  // which may be given before their matrix
};

// ---- weights ----

inline Transformer::Transformer(const TfmModelOptions& options) : settings(options) {
  D = options.width;
  encoder_width = D / options.encoder_heads;
  decoder_width = D / options.decoder_heads;
  embedding_scale = options.scale_embeddings ? (float)std::sqrt((double)D) : 1.0f;
  encoder.resize(options.encoder_layers);
  decoder.resize(options.decoder_layers);
  expect_embeddings();
  // DeepNorm is norm(x + f(x) / alpha), so that alpha becomes a part of the last matrix of f.
  // Source: Wang et al. 2022, arXiv:2203.00555, as in tfm_cli/model/deepnorm.py.
  float encoder_factor = 1, decoder_factor = 1;
  if (options.norm == TFM_DEEPNORM_NORM) {
    const double N = options.encoder_layers, M = options.decoder_layers;
    encoder_factor = float(1 / (0.81 * std::pow(N * N * N * N * M, 1.0 / 16)));
    decoder_factor = float(1 / std::pow(3 * M, 0.25));
  }
  for (int i = 0; i < options.encoder_layers; i++) {
    const std::string name = "encoder_layers." + std::to_string(i) + ".";
    EncoderLayer& layer = encoder[i];
    expect_linear(name + "self_attention.projection", 3 * D, D, {{&layer.self_attention.projection, 3 * D}});
    expect_linear(name + "self_attention.output", D, D, {{&layer.self_attention.output, D}}, encoder_factor);
    expect_residual(name + "self_attention_norm", layer.self_attention.residual);
    expect_feed_forward(name, layer.feed_forward, options.encoder_feed_forward_width, encoder_factor);
  }
  for (int i = 0; i < options.decoder_layers; i++) {
    const std::string name = "decoder_layers." + std::to_string(i) + ".";
    DecoderLayer& layer = decoder[i];
    CrossAttention& cross = layer.cross_attention;
    expect_linear(name + "self_attention.projection", 3 * D, D, {{&layer.self_attention.projection, 3 * D}});
    expect_linear(name + "self_attention.output", D, D, {{&layer.self_attention.output, D}}, decoder_factor);
    expect_residual(name + "self_attention_norm", layer.self_attention.residual);
    expect_linear(name + "cross_attention.projection", 3 * D, D, {{&cross.query, D}, {&cross.memory, 2 * D}});
    expect_linear(name + "cross_attention.output", D, D, {{&cross.output, D}}, decoder_factor);
    expect_residual(name + "cross_attention_norm", cross.residual);
    expect_feed_forward(name, layer.feed_forward, options.decoder_feed_forward_width, decoder_factor);
  }
  if (options.norm == TFM_PRE_NORM) {
    expect_norm("encoder_norm", encoder_norm);
    expect_norm("decoder_norm", decoder_norm);
  }
}

inline void Transformer::expect(const std::string& name, int64_t rows, int64_t columns,
                                std::function<void(const float*)> take) {
  tensors[name] = Tensor{rows, columns, std::move(take)};
}

// Pack a linear map whose rows are the concatenated rows of `parts`, multiplied by a factor.
inline void Transformer::expect_linear(const std::string& name, int64_t rows, int64_t columns,
                                       std::vector<std::pair<Linear*, int>> parts, float factor) {
  const Precision precision = Precision(settings.precision);
  // Return the values multiplied by the factor, in `buffer` unless it is 1.
  const auto multiplied = [factor](const float* values, int64_t count, Vector<float>& buffer) {
    if (factor == 1) return values;
    buffer.resize(size_t(count));
    for (int64_t i = 0; i < count; i++) buffer[size_t(i)] = values[i] * factor;
    return static_cast<const float*>(buffer.data());
  };
  const auto take_int8 = [=](const int8_t* bytes, const float* row_scales) {
    Vector<float> buffer;
    const float* scales = multiplied(row_scales, rows, buffer);
    int64_t from = 0;
    for (auto [linear, count] : parts) {
      linear->pack_int8(arena, bytes + from * columns, scales + from, count, (int)columns);
      from += count;
    }
  };
  expect(name + ".weight", rows, columns, [=](const float* values) {
    Vector<float> buffer;
    if (precision == Precision::int8 && factor != 1) {  // as weights that are stored in int8
      Vector<int8_t> bytes;
      bytes.resize(size_t(rows * columns));
      buffer.resize(size_t(rows));
      for (int64_t i = 0; i < rows; i++)
        buffer[size_t(i)] = quantize_weights(values + i * columns, size_t(columns), bytes.data() + i * columns);
      take_int8(bytes.data(), buffer.data());
      return;
    }
    const float* data = multiplied(values, rows * columns, buffer);
    int64_t from = 0;
    for (auto [linear, count] : parts) {
      linear->pack(arena, data + from * columns, count, (int)columns, precision);
      from += count;
    }
  });
  tensors[name + ".weight"].take_int8 = take_int8;
  expect(name + ".bias", rows, 0, [=](const float* values) {
    Vector<float> buffer;
    const float* data = multiplied(values, rows, buffer);
    int64_t from = 0;
    for (auto [linear, count] : parts) {
      biases[linear].assign(data + from, data + from + count);
      from += count;
    }
  });
}

inline void Transformer::expect_norm(const std::string& name, LayerNorm& norm) {
  expect(name + ".weight", D, 0, [=, &norm](const float* data) { norm.set(norm.gain, data, D); });
  expect(name + ".bias", D, 0, [=, &norm](const float* data) { norm.set(norm.bias, data, D); });
}

inline void Transformer::expect_residual(const std::string& name, Residual& residual) {
  residual.is_pre = settings.norm == TFM_PRE_NORM;
  expect_norm(name + ".norm", residual.norm);
}

inline void Transformer::expect_feed_forward(const std::string& name, FeedForward& layer, int inner_width,
                                             float factor) {
  layer.activation = settings.activation;
  layer.width = D;
  layer.inner_width = inner_width;
  const int rows = settings.activation == TFM_SWIGLU ? 2 * inner_width : inner_width;
  expect_linear(name + "feed_forward.inner", rows, D, {{&layer.inner, rows}});
  expect_linear(name + "feed_forward.outer", D, inner_width, {{&layer.outer, D}}, factor);
  expect_residual(name + "feed_forward_norm", layer.residual);
}

inline void Transformer::expect_embeddings() {
  const int V = settings.target_vocab_size;
  const Precision precision = Precision(settings.precision);
  const bool source_is_tied = settings.tied_embeddings & 1, output_is_tied = settings.tied_embeddings & 2;
  expect("target_embedding.weight", V, D, [=](const float* data) {
    if (output_is_tied) {
      output_layer.pack(arena, data, V, D, precision);
      target_embedding.share(&output_layer.matrix());
    } else {
      target_embedding.pack(arena, data, V, D, precision);
    }
  });
  tensors["target_embedding.weight"].take_int8 = [=](const int8_t* bytes, const float* scales) {
    if (output_is_tied) {
      output_layer.pack_int8(arena, bytes, scales, V, D);
      target_embedding.share(&output_layer.matrix());
    } else {
      target_embedding.pack_int8(arena, bytes, scales, V, D);
    }
  };
  if (!output_is_tied) {
    expect("output.weight", V, D, [=](const float* data) { output_layer.pack(arena, data, V, D, precision); });
    tensors["output.weight"].take_int8 = [=](const int8_t* bytes, const float* scales) {
      output_layer.pack_int8(arena, bytes, scales, V, D);
    };
  }
  if (!source_is_tied) {
    const int size = settings.source_vocab_size;
    expect("source_embedding.weight", size, D, [=](const float* data) {
      source_embedding.pack(arena, data, size, D, precision);
    });
    tensors["source_embedding.weight"].take_int8 = [=](const int8_t* bytes, const float* scales) {
      source_embedding.pack_int8(arena, bytes, scales, size, D);
    };
  }
  if (settings.output_bias)
    expect("output_bias", V, 0, [=](const float* data) { output_bias.assign(data, data + V); });
  if (settings.positions == TFM_LEARNED) {
    const size_t count = (size_t)settings.max_positions * D;
    expect("source_positions.embedding.weight", settings.max_positions, D,
           [=](const float* data) { source_positions.assign(data, data + count); });
    expect("target_positions.embedding.weight", settings.max_positions, D,
           [=](const float* data) { target_positions.assign(data, data + count); });
  }
}

inline bool all_finite(const float* values, int64_t count) {
  vf total = {};  // 0, unless a value is infinite or NaN
  int64_t i = 0;
  for (; i + VL <= count; i += VL) total += load(values + i) * 0.0f;
  if (i < count) total += load_first(values + i, int(count - i)) * 0.0f;
  return sum(total) == 0;
}

inline Transformer::Tensor& Transformer::arriving(const char* name, int64_t rows, int64_t columns) {
  const auto found = tensors.find(name);
  if (found == tensors.end()) refuse("the model has no tensor `%.100s`", name);
  Tensor& tensor = found->second;
  if (tensor.rows != rows || tensor.columns != columns)
    refuse("`%.100s` must be (%ld, %ld), got (%ld, %ld)", name, (long)tensor.rows,
           (long)tensor.columns, (long)rows, (long)columns);
  if (tensor.is_there) refuse("`%.100s` was given before", name);
  return tensor;
}

inline void check_finite(const char* name, const float* values, int64_t count) {
  if (!all_finite(values, count))
    throw Failure(TFM_NON_FINITE, ("`" + std::string(name) + "` has values that are not finite").c_str());
}

inline void Transformer::take(const char* name, const float* data, int64_t rows, int64_t columns) {
  Tensor& tensor = arriving(name, rows, columns);
  check_finite(name, data, rows * std::max<int64_t>(columns, 1));
  tensor.take(data);
  tensor.is_there = true;
}

inline void Transformer::take_int8(const char* name, const int8_t* bytes, const float* scales, int64_t rows,
                                    int64_t columns) {
  Tensor& tensor = arriving(name, rows, columns);
  if (settings.precision != TFM_INT8) refuse("`%.100s` is in int8, which the products are not", name);
  if (!tensor.take_int8) refuse("`%.100s` is no matrix of products", name);
  check_finite(name, scales, rows);
  tensor.take_int8(bytes, scales);
  tensor.is_there = true;
}

inline void Transformer::finish() {
  for (const auto& [name, tensor] : tensors)
    if (!tensor.is_there) refuse("the model lacks the tensor `%.100s`", name.c_str());
  for (const auto& [linear, bias] : biases) linear->set_bias(bias.data());
  biases.clear();
  if (!output_bias.empty()) output_layer.set_bias(output_bias.data());
  output_layer.ban(banned.data(), int(banned.size()));
  output_layer.finish(arena);
}

inline int64_t Transformer::bytes() const {
  return int64_t(arena.bytes() + (source_positions.size() + target_positions.size()) * sizeof(float));
}

// ---- the encoder ----

// Return the number of blocks of positions for a translation of up to `limit` tokens and </s>.
inline int64_t num_blocks(int limit) { return int64_t(limit) / kBlock + 1; }

// Return the number of elements of the keys, or of the values, of this many entries.
inline long Transformer::cache_elements(int entries) const {
  return long(has_half_caches() ? cache_size<uint16_t>(settings.decoder_heads, decoder_width, entries)
                                : cache_size<float>(settings.decoder_heads, decoder_width, entries));
}

inline int64_t Transformer::segment_bytes(int source_length, int limit, int beam) const {
  const int64_t entries = source_length + num_blocks(limit) * int64_t(kBlock) * beam;
  const int64_t numbers = cache_elements(1) * entries;  // of the keys or the values of a layer
  return numbers * 2 * settings.decoder_layers * int64_t(has_half_caches() ? sizeof(uint16_t) : sizeof(float));
}

template <class T>
Cache<T> Transformer::cache(State& state, int layer, int segment) const {
  const long before = long(state.segments[size_t(segment)].rank) * settings.decoder_layers + layer;
  T* keys = state.caches.get<T>(0) + 2 * before * state.block_size;
  return {keys, keys + state.block_size, kBlock * state.beam, state.blocks.data()};
}

template <class T>
Cache<T> Transformer::memory_cache(State& state, int layer, int segment) const {
  const State::Segment& own = state.segments[segment];
  T* keys = state.memory_caches.get<T>(0) + 2 * layer * state.memory_size + own.memory_at;
  return {keys, keys + state.memory_size, own.source_length};
}

inline void Transformer::embed(State& state, const Embedding& embedding,
                               const Vector<float>& learned, int id, int position,
                               float* x) const {
  embedding.look_up(id, embedding_scale, x);
  if (settings.positions == TFM_ROTARY) return;
  const float* encoding;
  if (settings.positions == TFM_LEARNED) {
    if (position >= settings.max_positions)
      refuse("the model has %d learned positions, the segment needs %d", settings.max_positions, position + 1);
    encoding = &learned[(size_t)position * D];
  } else {
    encoding = state.positions.of(position, D, settings.positions);
  }
  for (int d = 0; d < D; d++) x[d] += encoding[d];
}

// Assign the offset of each block of positions, given the limit of each segment.
inline void Transformer::place_blocks(State& state, const int32_t* limits) const {
  const int B = int(state.segments.size());
  Vector<int> order;
  for (int b = 0; b < B; b++) order.push_back(b);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return limits[a] > limits[b]; });
  for (int rank = 0; rank < B; rank++) state.segments[size_t(order[size_t(rank)])].rank = rank;
  state.block_size = cache_elements(kBlock * state.beam);
  state.blocks.assign(1, 0);
  const long own = 2 * settings.decoder_layers * state.block_size;  // a segment's share of a block
  for (int sharing = B; sharing > 0;) {
    state.blocks.push_back(state.blocks.back() + sharing * own);
    while (sharing > 0 && num_blocks(limits[order[size_t(sharing) - 1]]) < int64_t(state.blocks.size())) sharing--;
  }
}

inline void Transformer::encode(State& state, const TfmBatch& batch, const int32_t* limits, int beam) const {
  const int B = batch.num_segments;
  state.beam = beam;
  state.segments.resize(size_t(B));
  state.memory_size = 0;
  for (int b = 0; b < B; b++) {
    State::Segment& own = state.segments[size_t(b)];
    own.source_length = batch.source_lengths[b];
    if (settings.positions == TFM_LEARNED && own.source_length > settings.max_positions)
      refuse("the model has %d learned positions, the segment needs %d", settings.max_positions, own.source_length);
    own.memory_at = state.memory_size;
    state.memory_size += cache_elements(own.source_length);
  }
  place_blocks(state, limits);
  const size_t number = has_half_caches() ? sizeof(uint16_t) : sizeof(float);
  const size_t both = 2 * size_t(settings.decoder_layers) * number;
  state.memory_caches.get<char>(both * size_t(state.memory_size), true);
  state.caches.get<char>(number * size_t(state.blocks.back()), true);
  state.scratch.is_finite = true;
  has_half_caches() ? encode<uint16_t>(state, batch) : encode<float>(state, batch);
  if (!state.scratch.is_finite) refuse_non_finite();
}

// Segments are encoded in groups whose intermediate results stay in the processor's caches.
constexpr int ENCODED_ROWS = 256;

template <class T>
void Transformer::encode(State& state, const TfmBatch& batch) const {
  const Embedding& embedding = settings.tied_embeddings & 1 ? target_embedding : source_embedding;
  const long stride = padded(D);
  const int32_t* ids = batch.source_ids;
  for (int from = 0, to = 0; from < batch.num_segments; from = to) {
    int M = 0;
    while (to < batch.num_segments && (to == from || M + batch.source_lengths[to] <= ENCODED_ROWS))
      M += batch.source_lengths[to++];
    float* x = state.scratch.rows.get<float>(M * stride);  // (M, D)
    int row = 0;
    for (int b = from; b < to; b++)
      for (int s = 0; s < batch.source_lengths[b]; s++, row++)
        embed(state, embedding, source_positions, *ids++, s, x + row * stride);
    encode_rows(state, batch.source_lengths + from, to - from, x, M);
    cache_memory<T>(state, x, from, to);
  }
}

// Apply the encoder to x (M, D), the rows of several segments.
inline void Transformer::encode_rows(State& state, const int* lengths, int num_segments, float* x, int M) const {
  Scratch& scratch = state.scratch;
  const int H = settings.encoder_heads, E = encoder_width;
  const long stride = padded(D), wide = padded(3 * D);
  float* projected = scratch.projected.get<float>(M * wide);
  float* attended = scratch.attended.get<float>(M * stride);
  for (const EncoderLayer& layer : encoder) {
    const SelfAttention& attention = layer.self_attention;
    const float* seen = attention.residual.enter(scratch, x, M);
    scratch.product(seen, stride, M, attention.projection, Store{projected, wide});  // (M, 3D)
    int first = 0;
    for (int b = 0; b < num_segments; first += lengths[b++]) {
      float* own = projected + first * wide;
      if (settings.positions == TFM_ROTARY)
        for (int s = 0; s < lengths[b]; s++)
          state.encoder_rotations.rotate(own + s * wide, 2 * H, E, s);
      attend_all(scratch.scores, own, wide, lengths[b], H, E, attended + first * stride, stride);
    }
    scratch.product(attended, stride, M, attention.output, Add{x, stride});
    attention.residual.leave(scratch, x, M);
    layer.feed_forward.apply(scratch, x, M);
  }
  if (settings.norm == TFM_PRE_NORM) scratch.normalize(encoder_norm, x, x, stride, M);
}

// Cache keys and values of the encoder's output x (M, D) of some segments, for all decoder layers.
template <class T>
void Transformer::cache_memory(State& state, const float* x, int from, int to) const {
  const long stride = padded(D), wide = padded(2 * D);
  int M = 0;
  for (int b = from; b < to; b++) M += state.segments[b].source_length;
  float* projected = state.scratch.projected.get<float>(M * wide);
  for (size_t i = 0; i < decoder.size(); i++) {
    state.scratch.product(x, stride, M, decoder[i].cross_attention.memory, Store{projected, wide});  // (M, 2D)
    const float* row = projected;
    for (int b = from; b < to; b++)
      for (int s = 0; s < state.segments[b].source_length; s++, row += wide)
        store(memory_cache<T>(state, i, b), settings.decoder_heads, decoder_width, s, row, row + D);
  }
}

// ---- a step of the decoder ----

inline void Transformer::step(State& state, const Group* groups, int num_groups,
                              const int32_t* tokens, const uint8_t* const* ancestors,
                              float* hidden, const AttentionProbe* probe) const {
  int R = 0;
  for (int g = 0; g < num_groups; g++) R += groups[g].num_rows;
  const long stride = padded(D);
  float* x = state.scratch.rows.get<float>(R * stride);  // (R, D)
  for (int g = 0; g < num_groups; g++)
    for (int r = groups[g].first_row; r < groups[g].first_row + groups[g].num_rows; r++)
      embed(state, target_embedding, target_positions, tokens[r], groups[g].position, x + r * stride);
  has_half_caches() ? step<uint16_t>(state, groups, num_groups, R, ancestors, x, probe)
                    : step<float>(state, groups, num_groups, R, ancestors, x, probe);
  if (settings.norm == TFM_PRE_NORM) state.scratch.normalize(decoder_norm, x, x, stride, R);
  if (!state.scratch.is_finite) refuse_non_finite();
  for (int r = 0; r < R; r++) memcpy(hidden + (long)r * D, x + r * stride, D * sizeof(float));
}

template <class T>
void Transformer::step(State& state, const Group* groups, int num_groups, int R,
                       const uint8_t* const* ancestors, float* x, const AttentionProbe* probe) const {
  Scratch& scratch = state.scratch;
  const int H = settings.decoder_heads, E = decoder_width, K = state.beam;
  const long stride = padded(D), wide = padded(3 * D);
  float* projected = scratch.projected.get<float>(R * wide);
  float* attended = scratch.attended.get<float>(R * stride);
  int longest = 0;
  for (int g = 0; g < num_groups; g++)
    longest = std::max({longest, groups[g].position + 1, state.segments[groups[g].segment].source_length});
  float* scores = scratch.scores.get<float>(attention_scratch(longest, E));
  for (int i = 0; i < (int)decoder.size(); i++) {
    const SelfAttention& self = decoder[i].self_attention;
    const float* seen = self.residual.enter(scratch, x, R);
    scratch.product(seen, stride, R, self.projection, Store{projected, wide});  // (R, 3D)
    for (int g = 0; g < num_groups; g++) {
      const Group& group = groups[g];
      for (int k = 0; k < group.num_rows; k++) {
        float* query = projected + (group.first_row + k) * wide;
        if (settings.positions == TFM_ROTARY)
          state.decoder_rotations.rotate(query, 2 * H, E, group.position);  // query and key
        store(cache<T>(state, i, group.segment), H, E, group.position * K + k, query + D, query + 2 * D);
      }
    }
    for (int g = 0; g < num_groups; g++) {
      const Group& group = groups[g];
      const Cache<T> own = cache<T>(state, i, group.segment);
      const Cache<T> next = cache<T>(state, i, groups[g + 1 < num_groups ? g + 1 : 0].segment);
      for (int k = 0; k < group.num_rows; k++) {
        const int r = group.first_row + k;
        attend(projected + r * wide, own, H, E, group.position + 1, K, ancestors ? ancestors[r] : nullptr,
               attended + r * stride, scores, nullptr, k + 1 < group.num_rows ? &own : &next);
      }
    }
    scratch.product(attended, stride, R, self.output, Add{x, stride});
    self.residual.leave(scratch, x, R);

    const CrossAttention& cross = decoder[i].cross_attention;
    seen = cross.residual.enter(scratch, x, R);
    scratch.product(seen, stride, R, cross.query, Store{projected, stride});  // (R, D)
    for (int g = 0; g < num_groups; g++) {
      const Group& group = groups[g];
      const Cache<T> own = memory_cache<T>(state, i, group.segment);
      const Cache<T> next = memory_cache<T>(state, i, groups[g + 1 < num_groups ? g + 1 : 0].segment);
      for (int k = 0; k < group.num_rows; k++) {
        const int r = group.first_row + k;
        attend(projected + r * stride, own, H, E, own.capacity, 1, nullptr, attended + r * stride, scores,
               probe && probe->layer == i ? probe->weights[r] : nullptr, k + 1 < group.num_rows ? &own : &next);
      }
    }
    scratch.product(attended, stride, R, cross.output, Add{x, stride});
    cross.residual.leave(scratch, x, R);
    decoder[i].feed_forward.apply(scratch, x, R);
  }
}

}  // namespace tfm
