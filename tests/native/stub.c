// An engine that translates a segment by turning it round: what Python's face of the engine is
// tested against. Some source pieces ask for a fault.
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "interface.h"

enum { NO_MEMORY = 91, NON_FINITE = 92, ENDLESS = 93, DEFECT = 94, BAD = 95 };
enum { MOST = 1 << 16, NAMES = 1 << 12 };

struct TfmModel {
  TfmModelOptions options;
  char names[NAMES][64];
  double sums[NAMES];
  int num_tensors, num_banned, finished;
  int16_t byte_values[MOST];
};
struct TfmWorkspace {
  int32_t counts[MOST], lengths[MOST], ids[MOST];
  double log_probabilities[MOST], scores[MOST];
  float token_log_probs[MOST];
};

static int num_models = 0, num_workspaces = 0, num_trimmed = 0, largest = 0, num_searches = 0;
static _Thread_local char note[4096], noted[4096], error[256];

// For the tests alone
TFM_API int stub_models(void) { return num_models; }
TFM_API int stub_workspaces(void) { return num_workspaces; }
TFM_API int stub_trimmed(void) { return num_trimmed; }
TFM_API int stub_largest(void) { return largest; }
TFM_API int stub_searches(void) { return num_searches; }
TFM_API void stub_reset(void) { num_trimmed = largest = num_searches = 0; }
TFM_API const char* stub_note(void) { return note; }    // that stands now
TFM_API const char* stub_noted(void) { return noted; }  // that stood in the last search
TFM_API const TfmModelOptions* stub_options(const TfmModel* model) { return &model->options; }
TFM_API int stub_finished(const TfmModel* model) { return model->finished; }
TFM_API int stub_banned(const TfmModel* model) { return model->num_banned; }
TFM_API int stub_byte_value(const TfmModel* model, int id) { return model->byte_values[id]; }
TFM_API double stub_sum(const TfmModel* model, const char* name) {
  for (int i = 0; i < model->num_tensors; i++)
    if (!strcmp(model->names[i], name)) return model->sums[i];
  return NAN;
}

int32_t tfm_abi(void) { return TFM_ABI; }
int32_t tfm_runs_here(void) { return 1; }
const char* tfm_instruction_set(void) { return "stub"; }
int32_t tfm_has_bf16(void) { return 0; }
const char* tfm_error(void) { return error; }

int32_t tfm_model_new(const TfmModelOptions* options, TfmModel** model) {
  *model = calloc(1, sizeof(TfmModel));
  (*model)->options = *options;
  num_models++;
  return TFM_OK;
}

int32_t tfm_model_tensor(TfmModel* model, const char* name, const float* data, int64_t rows,
                         int64_t columns) {
  int64_t count = rows * (columns ? columns : 1);
  double sum = 0;
  for (int64_t i = 0; i < count; i++) {
    if (!isfinite(data[i])) return TFM_NON_FINITE;
    sum += data[i];
  }
  strcpy(model->names[model->num_tensors], name);
  model->sums[model->num_tensors++] = sum;
  return TFM_OK;
}

int32_t tfm_model_int8_tensor(TfmModel* model, const char* name, const int8_t* values,
                              const float* scales, int64_t rows, int64_t columns) {
  double sum = 0;
  for (int64_t i = 0; i < rows * columns; i++) sum += values[i] * scales[i / columns];
  strcpy(model->names[model->num_tensors], name);
  model->sums[model->num_tensors++] = sum;
  return TFM_OK;
}

int32_t tfm_quantize(const float* data, int64_t rows, int64_t columns, int8_t* values,
                     float* scales) {
  (void)data, (void)rows, (void)columns, (void)values, (void)scales;
  return TFM_DEFECT;
}

int32_t tfm_model_vocabulary(TfmModel* model, const int32_t* banned_ids, int32_t num_banned,
                             const int16_t* byte_values) {
  (void)banned_ids;
  model->num_banned = num_banned;
  for (int i = 0; i < model->options.target_vocab_size; i++)
    model->byte_values[i] = byte_values ? byte_values[i] : -2;
  return TFM_OK;
}

int32_t tfm_model_finish(TfmModel* model) { model->finished = 1; return TFM_OK; }
int64_t tfm_model_bytes(const TfmModel* model) { return model->num_tensors; }
void tfm_model_free(TfmModel* model) { free(model); num_models--; }

int32_t tfm_workspace_new(TfmWorkspace** workspace) {
  *workspace = calloc(1, sizeof(TfmWorkspace));
  num_workspaces++;
  return TFM_OK;
}

int64_t tfm_workspace_bytes(const TfmWorkspace* workspace) { (void)workspace; return 7; }
void tfm_workspace_trim(TfmWorkspace* workspace) { (void)workspace; num_trimmed++; }
void tfm_workspace_free(TfmWorkspace* workspace) { free(workspace); num_workspaces--; }
void tfm_fail_allocation(int64_t n) { (void)n; }

int64_t tfm_segment_bytes(const TfmModel* model, int32_t source_length, int32_t limit,
                          int32_t beam_size) {
  (void)model;
  return (source_length + (int64_t)limit * beam_size) * 100;
}

static int32_t fault(const TfmBatch* batch, int32_t (*should_stop)(void)) {
  const int32_t* id = batch->source_ids;
  for (int i = 0; i < batch->num_segments; i++)
    for (int j = 0; j < batch->source_lengths[i]; j++, id++) {
      strcpy(error, "told by the stub");
      if (*id == NO_MEMORY && batch->num_segments > 1) return TFM_NO_MEMORY;
      if (*id == NON_FINITE) return TFM_NON_FINITE;
      if (*id == DEFECT) return TFM_DEFECT;
      if (*id == BAD) return TFM_BAD_ARGUMENT;
      while (*id == ENDLESS) {
        if (should_stop && should_stop()) return TFM_STOPPED;
        usleep(1000);
      }
    }
  return TFM_OK;
}

int32_t tfm_search(const TfmModel* const* models, int32_t count, TfmWorkspace* workspace,
                   const TfmSearchOptions* options, const TfmBatch* batch, TfmResult* result) {
  TfmWorkspace* w = workspace;
  int32_t status = fault(batch, options->should_stop);
  const int32_t *source = batch->source_ids, *prefix = batch->prefix_ids;
  const int32_t* allowed = batch->allowed_ids;
  int row = 0, place = 0, score = 0;
  strcpy(noted, note);
  num_searches++;
  if (batch->num_segments > largest) largest = batch->num_segments;
  if (status) return status;
  for (int i = 0; i < batch->num_segments; i++) {
    int length = batch->source_lengths[i] - 1;  // without </s>
    int begun = batch->prefix_lengths ? batch->prefix_lengths[i] : 0;
    int listed = batch->allowed_lengths ? batch->allowed_lengths[i] : 0;
    w->counts[i] = options->beam_size;
    for (int k = 0; k < options->beam_size; k++) {
      int start = place;
      for (int j = 0; j < begun; j++) w->ids[place++] = prefix[j];
      for (int j = begun; j < length && j < batch->limits[i]; j++)
        w->ids[place++] = source[length - 1 - j];
      if (listed) w->ids[place++] = allowed[listed - 1];
      if (batch->seeds) w->ids[place++] = (int32_t)(batch->seeds[i] >> 60);
      w->lengths[row] = place - start;
      w->log_probabilities[row] = -(k + 1.0) * count;
      w->scores[row++] = -(k + 1.0) / (place - start + 1);
      for (int j = start; j <= place; j++) w->token_log_probs[score++] = -0.5f * (j - start);
    }
    source += length + 1;
    if (prefix) prefix += begun;
    if (allowed) allowed += listed;
  }
  result->num_segments = batch->num_segments;
  result->num_hypotheses = w->counts;
  result->lengths = w->lengths;
  result->ids = w->ids;
  result->log_probabilities = w->log_probabilities;
  result->scores = w->scores;
  result->token_log_probs = options->token_log_probs ? w->token_log_probs : NULL;
  (void)models;
  return TFM_OK;
}

int32_t tfm_score(const TfmModel* model, TfmWorkspace* workspace, const TfmBatch* batch,
                  const int32_t* target_ids, const int32_t* target_lengths,
                  float* log_probabilities, int32_t layer, float* attention) {
  int32_t status = fault(batch, NULL);
  (void)model, (void)workspace;
  if (status) return status;
  for (int i = 0; i < batch->num_segments; i++) {
    for (int t = 0; t <= target_lengths[i]; t++) {
      if (log_probabilities)
        *log_probabilities++ = t < target_lengths[i] ? -(float)target_ids[t] : -0.25f;
      for (int s = 0; attention && s < batch->source_lengths[i]; s++)
        *attention++ = (float)(100 * layer + 10 * t + s);
    }
    target_ids += target_lengths[i];
  }
  return TFM_OK;
}

void tfm_crash_note(const char* text) { text ? strcpy(note, text) : strcpy(note, ""); }
