// The C interface of the engine: what Python calls through ctypes.
//
// No function keeps a pointer that it was given, throws, prints or exits, and each checks all sizes,
// ids and lengths: what cannot be used is refused with a status. A model does not change once it is
// finished, so threads share it; each of them has a workspace of its own.
//
// B segments, S source pieces, T target pieces, K beam, V target vocabulary, D width
#pragma once
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// Changes with anything in this file. Python refuses a library that has another number.
#define TFM_ABI 1

#if defined(_WIN32)
#define TFM_API
#else
#define TFM_API __attribute__((visibility("default")))
#endif

typedef struct TfmModel TfmModel;          // packed weights of one Transformer
typedef struct TfmWorkspace TfmWorkspace;  // caches and results of one thread

enum TfmStatus {
  TFM_OK = 0,
  TFM_BAD_ARGUMENT = 1,  // tfm_error tells which
  TFM_NO_MEMORY = 2,     // of a batch: a smaller one may fit
  TFM_NON_FINITE = 3,    // the scores of the next piece are not finite numbers
  TFM_STOPPED = 4,       // `should_stop` said so
  TFM_DEFECT = 5,        // a fault of the engine
};

enum TfmPrecision { TFM_FP32 = 0, TFM_BF16 = 1, TFM_INT8 = 2 };
enum TfmNorm { TFM_POST_NORM = 0, TFM_PRE_NORM = 1 };
enum TfmActivation { TFM_RELU = 0, TFM_GELU = 1, TFM_SWISH = 2, TFM_SWIGLU = 3 };
enum TfmPositions {
  TFM_SINUSOIDAL = 0, TFM_SINUSOIDAL_HALVES = 1, TFM_SINUSOIDAL_MARIAN = 2, TFM_LEARNED = 3,
  TFM_ROTARY = 4,
};

typedef struct {
  int32_t encoder_layers, decoder_layers;
  int32_t width;                           // D
  int32_t encoder_heads, decoder_heads;
  int32_t encoder_feed_forward_width, decoder_feed_forward_width;
  int32_t source_vocab_size, target_vocab_size;
  int32_t norm, activation, positions;     // of the enumerations above
  int32_t max_positions;                   // of learned positions; else unused
  int32_t tied_embeddings;                 // 1: source and target, 2: target and output, 3: all
  int32_t scale_embeddings;                // multiply embeddings by sqrt(D)
  int32_t output_bias;
  int32_t start_id, eos_id;                // of the target vocabulary
  int32_t precision;                       // of the matrix products
} TfmModelOptions;

typedef struct {
  int32_t beam_size;             // K; 1 is greedy search
  int32_t sampling;              // draw one translation of each segment instead
  int32_t early_stopping;
  int32_t renormalize;
  int32_t no_repeat_ngram_size;  // 0 for any
  int32_t stops_loops;
  int32_t scores;                // note log-probabilities and scores; else greedy search leaves NaN
  int32_t piece_scores;          // note those of each piece
  int32_t wu_norm;               // length_norm "wu", else "power"
  int32_t top_k;                 // of sampling; 0 for all
  double length_penalty;
  double repetition_penalty;
  double temperature, top_p;     // of sampling
  // Called now and then, between steps; NULL for never. What is not 0 ends the search.
  int32_t (*should_stop)(void);
} TfmSearchOptions;

// Rows of several lengths are laid end to end.
typedef struct {
  int32_t num_segments;            // B
  const int32_t* source_ids;       // pieces of all segments, each with </s>
  const int32_t* source_lengths;   // (B,) S of each, at least 1
  // (B,) most pieces of each translation, without </s>. Where pieces stand for bytes, a limit that a
  // prefix exceeds is raised to it, and further to the end of a character that it begins; else the
  // limit cuts the prefix.
  const int32_t* limits;
  const int32_t* prefix_ids;       // what translations begin with; NULL for nothing
  const int32_t* prefix_lengths;   // (B,) or NULL
  const uint64_t* seeds;           // (B,) of sampling, or NULL
  // The shortlist of each segment, ascending; NULL for all pieces. The start, </s>, what is never
  // written and the prefix belong to each of them.
  const int32_t* allowed_ids;
  const int32_t* allowed_lengths;  // (B,); 0 for a segment that may use all pieces
} TfmBatch;

typedef struct {
  int32_t num_segments;
  const int32_t* num_hypotheses;   // (B,) at least 1 each, best first
  const int32_t* lengths;          // of all hypotheses of all segments, in order, without </s>
  const int32_t* ids;              // their pieces, end to end, without </s>
  const double* log_probabilities; // of each hypothesis
  const double* scores;            // of each hypothesis
  const float* piece_scores;       // length + 1 for each hypothesis, end to end; NULL if not asked for
} TfmResult;                       // valid until the workspace is used again

TFM_API int32_t tfm_abi(void);
// Whether this processor has the instructions that the library was built for. Needs none of them.
TFM_API int32_t tfm_runs_here(void);
// Such as "avx512_vnni", "avx2".
TFM_API const char* tfm_instruction_set(void);
// Whether products in bf16 are computed by instructions of their own.
TFM_API int32_t tfm_has_bf16(void);
// What the last call of this thread that did not return TFM_OK has to say.
TFM_API const char* tfm_error(void);

TFM_API int32_t tfm_model_new(const TfmModelOptions* options, TfmModel** model);
// Pack one tensor by its name in a model directory, (rows, columns) or (rows,) with columns = 0.
// TFM_NON_FINITE if a value is no finite number; other tensors may still be given, so that the
// caller can name all that are of no use.
TFM_API int32_t tfm_model_tensor(TfmModel* model, const char* name, const float* data, int64_t rows,
                                 int64_t columns);
// The same of a matrix that was quantized before, in a model whose products are in int8.
TFM_API int32_t tfm_model_bytes_tensor(TfmModel* model, const char* name, const int8_t* bytes,
                                       const float* scales, int64_t rows, int64_t columns);
// Bytes (rows, columns) of a matrix and the scale of each row: what a product in int8 makes of it.
TFM_API int32_t tfm_quantize(const float* data, int64_t rows, int64_t columns, int8_t* bytes,
                             float* scales);
// Pieces that are never written; for each target piece the byte it stands for, or -1: (V,) or NULL.
TFM_API int32_t tfm_model_vocabulary(TfmModel* model, const int32_t* banned_ids, int32_t num_banned,
                                     const int16_t* byte_values);
// Check that nothing is missing. The model is read-only from here on.
TFM_API int32_t tfm_model_finish(TfmModel* model);
TFM_API int64_t tfm_model_bytes(const TfmModel* model);
TFM_API void tfm_model_free(TfmModel* model);

TFM_API int32_t tfm_workspace_new(TfmWorkspace** workspace);
TFM_API int64_t tfm_workspace_bytes(const TfmWorkspace* workspace);
// Give the memory of caches back, not the workspace.
TFM_API void tfm_workspace_trim(TfmWorkspace* workspace);
TFM_API void tfm_workspace_free(TfmWorkspace* workspace);
// Let the n-th allocation from here on fail, once, for tests; 0 for none. Of this thread.
TFM_API void tfm_fail_allocation(int64_t n);
// Bytes that the caches of one segment take at most, for a choice of the batch.
TFM_API int64_t tfm_segment_bytes(const TfmModel* model, int32_t source_length, int32_t limit,
                                  int32_t beam_size);

// Translate a batch with the mean of one or several models over the same vocabulary.
TFM_API int32_t tfm_search(const TfmModel* const* models, int32_t num_models,
                           TfmWorkspace* workspace, const TfmSearchOptions* options,
                           const TfmBatch* batch, TfmResult* result);

// Read whole pairs (teacher forcing).
//   target_ids, target_lengths: the pieces of each target, without start and </s>.
//   log_probabilities: T + 1 for each pair, end to end, the last that of </s>; NULL if not wanted.
//   layer, attention: weights of the cross-attention of this decoder layer, mean over heads, at the
//   step that writes each piece: (T + 1, S) for each pair, end to end; NULL if not wanted.
TFM_API int32_t tfm_force(const TfmModel* model, TfmWorkspace* workspace, const TfmBatch* batch,
                          const int32_t* target_ids, const int32_t* target_lengths,
                          float* log_probabilities, int32_t layer, float* attention);

// What is written to standard error if this thread dies of a fault inside the engine; NULL for none.
TFM_API void tfm_crash_note(const char* text);

#ifdef __cplusplus
}
#endif
