// The functions of interface.h, compiled once for each instruction set.
#include "interface.h"

#include <algorithm>
#include <memory>
#include <new>

#include "argument_checks.h"
#include "calls.h"
#include "constraints.h"
#include "crash_note.h"
#include "failure.h"
#include "search.h"
#include "teacher_forcing.h"
#include "transformer.h"
#include "workspace.h"

// Packed weights, and a flag that is set when none is missing.
struct TfmModel {
  explicit TfmModel(const TfmModelOptions& options) : transformer(options) {}
  tfm::Transformer transformer;
  std::unique_ptr<tfm::Vocabulary> vocabulary;
  bool is_finished = false;
};

namespace {

using tfm::check_ids;
using tfm::check_range;
using tfm::checked_sum;
using tfm::guarded;
using tfm::refuse;

void check_options(const TfmModelOptions& o) {
  check_range("encoder_layers", o.encoder_layers, 0, 1000);
  check_range("decoder_layers", o.decoder_layers, 0, 1000);
  check_range("width", o.width, 1, 1 << 16);
  check_range("encoder_feed_forward_width", o.encoder_feed_forward_width, 1, 1 << 20);
  check_range("decoder_feed_forward_width", o.decoder_feed_forward_width, 1, 1 << 20);
  check_range("source_vocab_size", o.source_vocab_size, 1, 1 << 24);
  check_range("target_vocab_size", o.target_vocab_size, 1, 1 << 24);
  check_range("norm", o.norm, TFM_POST_NORM, TFM_DEEPNORM_NORM);
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

void check_finished(const TfmModel* model) {
  if (model == nullptr) refuse("there is no model");
  if (!model->is_finished) refuse("the model is not finished");
}

int64_t segment_bytes(const TfmModel& model, int32_t source_length, int32_t limit, int32_t beam_size) {
  source_length = std::clamp(source_length, 1, tfm::kMaxLength);
  limit = std::clamp(limit, 0, tfm::kMaxLength);
  beam_size = std::clamp(beam_size, 1, tfm::kMaxBeams);
  return model.transformer.segment_bytes(source_length, limit, beam_size) +
         tfm::hypotheses_bytes(model.transformer.options().width, limit, beam_size);
}

// Refuse a batch that no machine can hold, before integers overflow in computing its size.
void check_memory(const TfmModel* const* models, int32_t num_models, const TfmBatch& batch, int32_t beam_size) {
  constexpr double max_bytes = 0x1p46;  // 64 TiB
  double total = 0;
  for (int32_t b = 0; b < batch.num_segments; b++)
    for (int32_t m = 0; m < num_models; m++)
      total += double(segment_bytes(*models[m], batch.source_lengths[b], batch.limits[b], beam_size));
  if (total > max_bytes) throw std::bad_alloc();
}

// Check models that search together, and that they share a vocabulary.
void check_models(const TfmModel* const* models, int32_t num_models) {
  if (!models) refuse("no models");
  check_range("num_models", num_models, 1, 1024);
  for (int32_t m = 0; m < num_models; m++) {
    if (!models[m] || !models[m]->is_finished) refuse("model %d is not finished", m);
    const TfmModelOptions &own = models[m]->transformer.options(), &first = models[0]->transformer.options();
    if (own.source_vocab_size != first.source_vocab_size || own.target_vocab_size != first.target_vocab_size ||
        own.start_id != first.start_id || own.eos_id != first.eos_id)
      refuse("model %d has another vocabulary than the first", m);
  }
}

}  // namespace

const char* tfm_error(void) { return tfm::last_error(); }

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

int32_t tfm_model_int8_tensor(TfmModel* model, const char* name, const int8_t* values, const float* scales,
                              int64_t rows, int64_t columns) {
  return guarded([&] {
    if (model == nullptr || name == nullptr || values == nullptr || scales == nullptr) refuse("an argument is missing");
    if (model->is_finished) refuse("the model is finished");
    model->transformer.take_int8(name, values, scales, rows, columns);
  });
}

int32_t tfm_quantize(const float* data, int64_t rows, int64_t columns, int8_t* values, float* scales) {
  return guarded([&] {
    if (data == nullptr || values == nullptr || scales == nullptr) refuse("an argument is missing");
    check_range("rows", rows, 0, 1 << 24);
    check_range("columns", columns, 1, 1 << 24);
    for (int64_t i = 0; i < rows; i++)
      scales[i] = tfm::quantize_weights(data + i * columns, size_t(columns), values + i * columns);
    tfm::check_finite("data", scales, rows);
  });
}

int32_t tfm_model_vocabulary(TfmModel* model, const int32_t* banned_ids, int32_t num_banned, const int16_t* byte_values) {
  return guarded([&] {
    if (model == nullptr) refuse("an argument is missing");
    if (model->is_finished) refuse("the model is finished");
    if (model->vocabulary) refuse("the vocabulary was given before");
    const int32_t size = model->transformer.options().target_vocab_size;
    check_range("num_banned", num_banned, 0, 1 << 24);
    check_ids("banned_ids", banned_ids, num_banned, size);
    const int32_t eos_id = model->transformer.options().eos_id;
    if (std::find(banned_ids, banned_ids + num_banned, eos_id) != banned_ids + num_banned)
      refuse("the vocabulary bans </s>, id %d, without which no translation ends", eos_id);
    for (int32_t i = 0; byte_values && i < size; i++) check_range("byte_values", byte_values[i], -1, 255);
    tfm::check_failpoint();
    model->vocabulary = std::make_unique<tfm::Vocabulary>(banned_ids, num_banned, byte_values, size);
  });
}

int32_t tfm_model_finish(TfmModel* model) {
  return guarded([&] {
    if (model == nullptr) refuse("an argument is missing");
    if (model->is_finished) refuse("the model is finished");
    if (!model->vocabulary) {
      tfm::check_failpoint();
      model->vocabulary = std::make_unique<tfm::Vocabulary>(nullptr, 0, nullptr, model->transformer.options().target_vocab_size);
    }
    const tfm::Vector<int32_t>& banned = model->vocabulary->banned();
    model->transformer.ban(banned.data(), int(banned.size()));
    model->transformer.finish();
    model->is_finished = true;
  });
}

int64_t tfm_model_bytes(const TfmModel* model) { return model ? model->transformer.bytes() : 0; }
void tfm_model_free(TfmModel* model) { delete model; }

int32_t tfm_workspace_new(TfmWorkspace** workspace) {
  return guarded([&] {
    if (!workspace) refuse("an argument is missing");
    *workspace = nullptr;
    tfm::check_failpoint();
    *workspace = new TfmWorkspace;
  });
}

int64_t tfm_workspace_bytes(const TfmWorkspace* workspace) { return workspace ? workspace->bytes() : 0; }

void tfm_workspace_trim(TfmWorkspace* workspace) {
  if (workspace) workspace->trim();
}

void tfm_workspace_free(TfmWorkspace* workspace) { delete workspace; }

void tfm_fail_allocation(int64_t n) { tfm::fail_allocation(n); }

int64_t tfm_segment_bytes(const TfmModel* model, int32_t source_length, int32_t limit, int32_t beam_size) {
  return model ? segment_bytes(*model, source_length, limit, beam_size) : 0;
}

int32_t tfm_search(const TfmModel* const* models, int32_t num_models, TfmWorkspace* workspace,
                   const TfmSearchOptions* options, const TfmBatch* batch, TfmResult* result) {
  return guarded([&] {
    if (!workspace || !options || !batch || !result) refuse("an argument is missing");
    *result = {};
    check_models(models, num_models);
    tfm::check_options(*options);
    tfm::check_batch(*batch, models[0]->transformer.options(), *options);
    check_memory(models, num_models, *batch, options->sampling ? 1 : options->beam_size);
    const tfm::CrashGuard guard(workspace->fault_stack);
    tfm::Vector<const tfm::Transformer*> transformers;  // (M,)
    for (int32_t m = 0; m < num_models; m++) transformers.push_back(&models[m]->transformer);
    tfm::Search search(transformers.data(), num_models, *models[0]->vocabulary, *options, workspace->memory);
    *result = workspace->result(search.run(*batch), options->token_log_probs != 0);
  });
}

int32_t tfm_score(const TfmModel* model, TfmWorkspace* workspace, const TfmBatch* batch, const int32_t* target_ids,
                  const int32_t* target_lengths, float* log_probabilities, int32_t layer, float* attention) {
  return guarded([&] {
    if (workspace == nullptr || batch == nullptr) refuse("an argument is missing");
    check_finished(model);
    const TfmModelOptions& options = model->transformer.options();
    tfm::check_sources(*batch, options);
    const int64_t total = checked_sum("target_lengths", target_lengths, batch->num_segments, 0);
    check_ids("target_ids", target_ids, total, options.target_vocab_size);
    if (attention) check_range("layer", layer, 0, options.decoder_layers - 1);
    const tfm::CrashGuard guard(workspace->fault_stack);
    tfm::score(model->transformer, workspace->memory.state(0), *batch, target_ids, target_lengths, log_probabilities, layer, attention);
  });
}

void tfm_crash_note(const char* text) { tfm::set_crash_note(text); }
