// The C interface of the engine, which Python calls through ctypes.
//
// No function stores a pointer argument, throws, prints or exits, and each checks all sizes, ids and
// lengths: invalid arguments are refused with a status. A model is read-only once it is
// finished, so threads can share it; each thread has its own workspace.
//
// B segments, S source tokens, T target tokens, K beam, V target vocabulary, D width
#pragma once
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// Increase it with any change of a declaration in this file. Python refuses a library with another number.
#define TFM_ABI 2

#if defined(_WIN32)
#define TFM_API
#else
#define TFM_API __attribute__((visibility("default")))
#endif

typedef struct TfmModel TfmModel;          // packed weights of one Transformer
typedef struct TfmWorkspace TfmWorkspace;  // caches and results of one thread

enum TfmStatus {
  TFM_OK = 0,
  TFM_BAD_ARGUMENT = 1,  // see tfm_error
  TFM_NO_MEMORY = 2,     // of a batch: a smaller one may fit
  TFM_NON_FINITE = 3,    // the scores of the next token are not finite numbers
  TFM_STOPPED = 4,       // `should_stop` returned true
  TFM_DEFECT = 5,        // a bug of the engine
};

enum TfmPrecision { TFM_FP32 = 0, TFM_BF16 = 1, TFM_INT8 = 2 };
enum TfmNorm { TFM_POST_NORM = 0, TFM_PRE_NORM = 1, TFM_DEEPNORM_NORM = 2 };
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
  int32_t norm, activation, positions;     // values of the enumerations above
  int32_t max_positions;                   // of learned positions; else unused
  int32_t tied_embeddings;                 // 1: source and target, 2: target and output, 3: all
  int32_t scale_embeddings;                // multiply embeddings by sqrt(D)
  int32_t output_bias;
  int32_t start_id, eos_id;                // of the target vocabulary
  int32_t precision;                       // of the matrix products
} TfmModelOptions;

typedef struct {
  int32_t beam_size;             // K; 1 is greedy search
  int32_t sampling;              // sample one translation of each segment instead
  int32_t early_stopping;
  int32_t renormalize;
  int32_t no_repeat_ngram_size;  // 0 for no constraint
  int32_t stops_loops;
  int32_t scores;                // compute log-probabilities and scores; else those of greedy search are NaN
  int32_t token_log_probs;       // store log-probabilities of each token
  int32_t wu_norm;               // length_norm "wu", else "power"
  int32_t top_k;                 // of sampling; 0 for all
  double length_penalty;
  double repetition_penalty;
  double temperature, top_p;     // of sampling
  // Called regularly, between steps; NULL for never. A result other than 0 ends the search.
  int32_t (*should_stop)(void);
} TfmSearchOptions;

// Rows of different lengths are concatenated.
typedef struct {
  int32_t num_segments;            // B
  const int32_t* source_ids;       // tokens of all segments, each with </s>
  const int32_t* source_lengths;   // (B,) S of each, at least 1
  // (B,) maximum tokens of each translation, without </s>. With byte tokens, a limit that a prefix
  // exceeds is raised to its length, and further to the end of a character that it begins; without
  // them, the limit truncates the prefix.
  const int32_t* limits;
  const int32_t* prefix_ids;       // first tokens of translations; NULL for none
  const int32_t* prefix_lengths;   // (B,) or NULL
  const uint64_t* seeds;           // (B,) of sampling, or NULL
  // The shortlist of each segment, ascending; NULL for all tokens. The start, </s>, banned tokens and
  // the prefix are added to each of them.
  const int32_t* allowed_ids;
  const int32_t* allowed_lengths;  // (B,); 0 for a segment that may use all tokens
} TfmBatch;

typedef struct {
  int32_t num_segments;
  const int32_t* num_hypotheses;   // (B,) at least 1 each, best first
  const int32_t* lengths;          // of all hypotheses of all segments, in order, without </s>
  const int32_t* ids;              // their tokens, concatenated, without </s>
  const double* log_probabilities; // of each hypothesis
  const double* scores;            // of each hypothesis
  const float* token_log_probs;    // length + 1 for each hypothesis, concatenated; NULL if not requested
} TfmResult;                       // valid until the next use of the workspace

TFM_API int32_t tfm_abi(void);
// Return 1 if this processor has the instructions that the library was built for, without using them.
TFM_API int32_t tfm_runs_here(void);
// Return the instruction set, such as "avx512_vnni" or "avx2".
TFM_API const char* tfm_instruction_set(void);
// Return 1 if the processor has instructions for products in bf16.
TFM_API int32_t tfm_has_bf16(void);
// Return the message of the last call of this thread that did not return TFM_OK.
TFM_API const char* tfm_error(void);

TFM_API int32_t tfm_model_new(const TfmModelOptions* options, TfmModel** model);
// Pack one tensor by its name in a model directory, (rows, columns) or (rows,) with columns = 0.
// Return TFM_NON_FINITE if a value is not finite; other tensors may still be packed, so that the caller
// can report all of them.
TFM_API int32_t tfm_model_tensor(TfmModel* model, const char* name, const float* data, int64_t rows,
                                 int64_t columns);
// Pack a quantized matrix, in a model whose products are in int8.
TFM_API int32_t tfm_model_int8_tensor(TfmModel* model, const char* name, const int8_t* values,
                                      const float* scales, int64_t rows, int64_t columns);
// Quantize a matrix as products in int8 do: values (rows, columns) and a scale for each row.
TFM_API int32_t tfm_quantize(const float* data, int64_t rows, int64_t columns, int8_t* values,
                             float* scales);
// Set the tokens that are never generated, without </s>, and for each target token the byte that it
// stands for, or -1: (V,) or NULL.
TFM_API int32_t tfm_model_vocabulary(TfmModel* model, const int32_t* banned_ids, int32_t num_banned,
                                     const int16_t* byte_values);
// Check that no tensor is missing. The model is read-only after this call.
TFM_API int32_t tfm_model_finish(TfmModel* model);
TFM_API int64_t tfm_model_bytes(const TfmModel* model);
TFM_API void tfm_model_free(TfmModel* model);

TFM_API int32_t tfm_workspace_new(TfmWorkspace** workspace);
TFM_API int64_t tfm_workspace_bytes(const TfmWorkspace* workspace);
// Free the caches of a workspace, not the workspace itself.
TFM_API void tfm_workspace_trim(TfmWorkspace* workspace);
TFM_API void tfm_workspace_free(TfmWorkspace* workspace);
// Make the n-th next allocation of this thread fail, once, for tests; 0 for none.
TFM_API void tfm_fail_allocation(int64_t n);
// Return the maximum size of the caches of one segment, for choosing a batch.
TFM_API int64_t tfm_segment_bytes(const TfmModel* model, int32_t source_length, int32_t limit,
                                  int32_t beam_size);

// Translate a batch with one model, or with an ensemble of models over the same vocabulary.
TFM_API int32_t tfm_search(const TfmModel* const* models, int32_t num_models,
                           TfmWorkspace* workspace, const TfmSearchOptions* options,
                           const TfmBatch* batch, TfmResult* result);

// Score pairs by teacher forcing.
//   target_ids, target_lengths: the tokens of each target, without start and </s>.
//   log_probabilities: T + 1 for each pair, concatenated, the last that of </s>; NULL for none.
//   layer, attention: weights of the cross-attention of this decoder layer, averaged over heads, at the
//   step that predicts each token: (T + 1, S) for each pair, concatenated; NULL for none.
TFM_API int32_t tfm_score(const TfmModel* model, TfmWorkspace* workspace, const TfmBatch* batch,
                          const int32_t* target_ids, const int32_t* target_lengths,
                          float* log_probabilities, int32_t layer, float* attention);

// Set the message that is written to standard error on a fault of this thread inside the engine; NULL
// for none.
TFM_API void tfm_crash_note(const char* text);

#ifdef __cplusplus
}
#endif
