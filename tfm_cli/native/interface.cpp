// The functions of interface.h, compiled once for each instruction set.
#include "interface.h"

#include <cmath>
#include <memory>
#include <new>

#include "failure.h"
#include "teacher_forcing.h"
#include "transformer.h"

// Packed weights, and whether they are all there.
struct TfmModel {
  explicit TfmModel(const TfmModelOptions& options) : transformer(options) {}
  tfm::Transformer transformer;
  bool is_finished = false;
};

struct TfmWorkspace {
  tfm::State state;
};

namespace {

using tfm::Failure;
using tfm::refuse;

thread_local char last_error[256];

// What `body` does; a failure becomes a status and a text.
template <class Body>
int32_t guarded(Body body) {
  int32_t status = TFM_DEFECT;
  try {
    body();
    return TFM_OK;
  } catch (const Failure& failure) {
    status = failure.status;
    snprintf(last_error, sizeof last_error, "%s", failure.what());
  } catch (const std::bad_alloc&) {
    status = TFM_NO_MEMORY;
    snprintf(last_error, sizeof last_error, "there is not enough memory");
  } catch (const std::exception& error) {
    snprintf(last_error, sizeof last_error, "%s", error.what());
  } catch (...) {
    snprintf(last_error, sizeof last_error, "an unknown exception");
  }
  return status;
}

// ---- checks ----

constexpr int kMostPieces = 1 << 22;  // of a segment

void check_range(const char* name, int64_t value, int64_t least, int64_t most) {
  if (value < least || value > most)
    refuse("%s must be between %lld and %lld, got %lld", name, (long long)least, (long long)most, (long long)value);
}

void check_options(const TfmModelOptions& o) {
  check_range("encoder_layers", o.encoder_layers, 0, 1000);
  check_range("decoder_layers", o.decoder_layers, 0, 1000);
  check_range("width", o.width, 1, 1 << 16);
  check_range("encoder_feed_forward_width", o.encoder_feed_forward_width, 1, 1 << 20);
  check_range("decoder_feed_forward_width", o.decoder_feed_forward_width, 1, 1 << 20);
  check_range("source_vocab_size", o.source_vocab_size, 1, 1 << 24);
  check_range("target_vocab_size", o.target_vocab_size, 1, 1 << 24);
  check_range("norm", o.norm, TFM_POST_NORM, TFM_PRE_NORM);
  check_range("activation", o.activation, TFM_RELU, TFM_SWIGLU);
  check_range("positions", o.positions, TFM_SINUSOIDAL, TFM_ROTARY);
  check_range("tied_embeddings", o.tied_embeddings, 0, 3);
  check_range("precision", o.precision, TFM_FP32, TFM_INT8);
  check_range("start_id", o.start_id, 0, o.target_vocab_size - 1);
  check_range("eos_id", o.eos_id, 0, o.target_vocab_size - 1);
  for (int heads : {o.encoder_heads, o.decoder_heads}) {
    check_range("heads", heads, 1, o.width);
    if (o.width % heads) refuse("heads must divide the width, got %d and %d", heads, o.width);
    if (o.positions == TFM_ROTARY && o.width / heads % 2)
      refuse("rotary positions need heads of even width, got %d", o.width / heads);
  }
  if (o.positions == TFM_SINUSOIDAL_MARIAN && o.width % 2)
    refuse("Marian's sinusoids need an even width, got %d", o.width);
  if (o.positions == TFM_LEARNED) check_range("max_positions", o.max_positions, 1, 1 << 24);
  if (o.tied_embeddings & 1 && o.source_vocab_size != o.target_vocab_size)
    refuse("tied source and target need vocabularies of one size, got %d and %d", o.source_vocab_size, o.target_vocab_size);
}

void check_ids(const char* name, const int32_t* ids, int64_t count, int vocab_size) {
  if (count > 0 && ids == nullptr) refuse("%s is missing", name);
  for (int64_t i = 0; i < count; i++)
    if (ids[i] < 0 || ids[i] >= vocab_size) refuse("%s has %d, the vocabulary %d pieces", name, ids[i], vocab_size);
}

// The number of pieces of all segments together.
int64_t check_lengths(const char* name, const int32_t* lengths, int num_segments, int least) {
  if (num_segments > 0 && lengths == nullptr) refuse("%s is missing", name);
  int64_t total = 0;
  for (int b = 0; b < num_segments; b++) {
    check_range(name, lengths[b], least, kMostPieces);
    total += lengths[b];
  }
  return total;
}

void check_source(const TfmModel& model, const TfmBatch& batch) {
  check_range("num_segments", batch.num_segments, 0, 1 << 20);
  const int64_t total = check_lengths("source_lengths", batch.source_lengths, batch.num_segments, 1);
  check_ids("source_ids", batch.source_ids, total, model.transformer.options().source_vocab_size);
}

void check_finished(const TfmModel* model) {
  if (model == nullptr) refuse("there is no model");
  if (!model->is_finished) refuse("the model is not finished");
}

}  // namespace

const char* tfm_error(void) { return last_error; }

int32_t tfm_model_new(const TfmModelOptions* options, TfmModel** model) {
  return guarded([&] {
    if (options == nullptr || model == nullptr) refuse("an argument is missing");
    *model = nullptr;
    check_options(*options);
    tfm::check_failpoint();
    *model = new TfmModel(*options);
  });
}

int32_t tfm_model_tensor(TfmModel* model, const char* name, const float* data, int64_t rows, int64_t columns) {
  return guarded([&] {
    if (model == nullptr || name == nullptr || data == nullptr) refuse("an argument is missing");
    if (model->is_finished) refuse("the model is finished");
    model->transformer.take(name, data, rows, columns);
  });
}

int32_t tfm_model_vocabulary(TfmModel* model, const int32_t* banned_ids, int32_t num_banned, const int16_t*) {
  return guarded([&] {
    if (model == nullptr) refuse("an argument is missing");
    if (model->is_finished) refuse("the model is finished");
    check_range("num_banned", num_banned, 0, 1 << 24);
    check_ids("banned_ids", banned_ids, num_banned, model->transformer.options().target_vocab_size);
    model->transformer.ban(banned_ids, num_banned);
  });
}

int32_t tfm_model_finish(TfmModel* model) {
  return guarded([&] {
    if (model == nullptr) refuse("an argument is missing");
    if (model->is_finished) refuse("the model is finished");
    model->transformer.finish();
    model->is_finished = true;
  });
}

int64_t tfm_model_bytes(const TfmModel* model) { return model ? model->transformer.bytes() : 0; }
void tfm_model_free(TfmModel* model) { delete model; }

int32_t tfm_workspace_new(TfmWorkspace** workspace) {
  return guarded([&] {
    if (workspace == nullptr) refuse("an argument is missing");
    *workspace = nullptr;
    tfm::check_failpoint();
    *workspace = new TfmWorkspace;
  });
}
int64_t tfm_workspace_bytes(const TfmWorkspace* workspace) { return workspace ? int64_t(workspace->state.bytes()) : 0; }
void tfm_workspace_trim(TfmWorkspace* workspace) {
  if (workspace) workspace->state.release();
}
void tfm_workspace_free(TfmWorkspace* workspace) { delete workspace; }
void tfm_fail_allocation(int64_t n) { tfm::fail_allocation(n); }

int64_t tfm_segment_bytes(const TfmModel* model, int32_t source_length, int32_t limit, int32_t beam_size) {
  return model ? model->transformer.segment_bytes(source_length, limit, beam_size) : 0;
}

int32_t tfm_search(const TfmModel* const*, int32_t, TfmWorkspace*, const TfmSearchOptions*, const TfmBatch*, TfmResult*) {
  return guarded([&] { throw Failure(TFM_DEFECT, "not there yet"); });
}

int32_t tfm_force(const TfmModel* model, TfmWorkspace* workspace, const TfmBatch* batch, const int32_t* target_ids,
                  const int32_t* target_lengths, float* log_probabilities, int32_t layer, float* attention) {
  return guarded([&] {
    if (workspace == nullptr || batch == nullptr) refuse("an argument is missing");
    check_finished(model);
    check_source(*model, *batch);
    const TfmModelOptions& options = model->transformer.options();
    const int64_t total = check_lengths("target_lengths", target_lengths, batch->num_segments, 0);
    check_ids("target_ids", target_ids, total, options.target_vocab_size);
    if (attention) check_range("layer", layer, 0, options.decoder_layers - 1);
    tfm::force(model->transformer, workspace->state, *batch, target_ids, target_lengths, log_probabilities, layer, attention);
  });
}

void tfm_crash_note(const char*) {}
