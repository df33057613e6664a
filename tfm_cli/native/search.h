// Greedy search, beam search and sampling, a batch at a time.
//
// The rules are those of `decoding/beam.py`, `greedy.py` and `sampling.py`, with two differences:
// hypotheses that score -inf are dropped, and the logits of a row without constraints are never
// materialized, which depends on that row only. Among equal scores, the hypothesis that ranked higher
// comes first, then the token with the lower id.
//
// B segments, K beam, R rows (the growing hypotheses of all segments), V vocabulary, D width of a model,
// M models, C candidates of a row, N tokens that a row may generate, t tokens generated
#pragma once
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>

#include "allocation.h"
#include "argument_checks.h"
#include "choices.h"
#include "constraints.h"
#include "failure.h"
#include "interface.h"
#include "output_layer.h"
#include "output_part.h"
#include "random.h"
#include "transformer.h"

namespace tfm {

// A translation in token ids, without </s>.
struct Hypothesis {
  Vector<int32_t> ids;
  double log_probability, score;
  Vector<float> token_log_probs;
};

// Caches and working memory of a search, reused by the next batch.
struct SearchMemory {
  Vector<std::unique_ptr<State>> states;     // (M,)
  Vector<std::unique_ptr<OutputPart>> parts;  // (M,) for shortlists
  Buffer hidden, gathered, logits, needed_logits, log_sums, values, ids, candidates;
  Vector<Choice> found;
  Vector<float> kept;
  Vector<int32_t> repeats, distinct;
  Draw draw;

  // Return the state of model m.
  State& state(int m) {
    while (states.size() <= size_t(m)) {
      check_failpoint();
      states.push_back(std::make_unique<State>());
    }
    return *states[size_t(m)];
  }
  OutputPart& part(int m) {
    while (parts.size() <= size_t(m)) {
      check_failpoint();
      parts.push_back(std::make_unique<OutputPart>());
    }
    return *parts[size_t(m)];
  }
  size_t bytes() const {
    size_t total = hidden.bytes() + gathered.bytes() + logits.bytes() + needed_logits.bytes() + log_sums.bytes() +
                   values.bytes() + ids.bytes() + candidates.bytes();
    for (const auto& state : states) total += state->bytes();
    for (const auto& part : parts) total += part->bytes();
    return total;
  }
  void release() {
    states.clear();
    parts.clear();
    for (Buffer* buffer : {&hidden, &gathered, &logits, &needed_logits, &log_sums, &values, &ids, &candidates}) buffer->release();
  }
};

// Return the maximum size of the hypotheses of one segment, without the caches of the models.
inline int64_t hypotheses_bytes(int width, int limit, int beam) {
  const int64_t hidden = 2 * int64_t(width) * int64_t(sizeof(float));  // twice, since rows are also gathered
  // 2K candidates: logits and ids, continuations, and working memory of the output layer.
  const int64_t candidates = 2 * int64_t(beam) * 32;
  // Ids, ancestors and log-probabilities, for this step and the next.
  const int64_t history = 2 * (int64_t(limit) + 1) * int64_t(sizeof(int32_t) + 1 + sizeof(float));
  return beam * (hidden + candidates + history);
}

// Return the divisor of the log-probability of a hypothesis of n tokens, including </s>.
//
// Source: Wu et al. 2016, arXiv:1609.08144, equation 14, for `wu_norm`.
inline double length_norm(int n, const TfmSearchOptions& options) {
  return std::pow(options.wu_norm ? (5 + n) / 6.0 : double(n), options.length_penalty);
}

class Search {
 public:
  // models: (M,) over `vocabulary`.
  Search(const Transformer* const* models, int num_models, const Vocabulary& vocabulary,
         const TfmSearchOptions& options, SearchMemory& memory)
      : models_(models), num_models_(num_models), vocabulary_(vocabulary), options_(options), memory_(memory),
        eos_(models[0]->options().eos_id), start_(models[0]->options().start_id), beam_(options.sampling ? 1 : options.beam_size),
        is_scored_(options.sampling || options.scores || options.token_log_probs || options.beam_size > 1),
        max_candidates_(is_scored_ && !options.sampling ? int(std::min<int64_t>(2 * int64_t(beam_), vocabulary.size())) : 1) {}

  // Return the hypotheses of each segment, best first; at least one.
  Vector<Vector<Hypothesis>> run(const TfmBatch& batch) {
    begin(batch);
    gather_needed();
    encode(batch);
    open_.erase(std::remove_if(open_.begin(), open_.end(), [&](int32_t b) { return close_if_ended(segments_[size_t(b)]); }),
                open_.end());
    while (!open_.empty()) {
      check_stop();
      step();
      if (options_.sampling) draw_next();
      else find_candidates();
      size_t kept = 0;
      for (size_t i = 0; i < open_.size(); i++) {
        Segment& segment = segments_[size_t(open_[i])];
        if (options_.sampling ? append_drawn(segment) : advance(segment)) open_[kept++] = open_[i];
      }
      open_.resize(kept);
    }
    Vector<Vector<Hypothesis>> all;
    all.reserve(segments_.size());
    for (Segment& segment : segments_) {
      if (segment.finished.empty()) refuse_non_finite();  // the scores of all hypotheses overflowed
      all.push_back(std::move(segment.finished));
    }
    return all;
  }

 private:
  // A growing hypothesis.
  struct Row {
    Vector<int32_t> ids;        // (t,)
    Vector<uint8_t> ancestors;  // (t + 1,) the beam that computed its cache entry at each position
    Vector<float> token_log_probs;  // (t,) if requested
    float total = 0;            // log-probability
    double exact_total = 0;     // of sampling, in double
    uint8_t state = kBetween;   // of the UTF-8 constraint
    bool is_ending = false;     // only </s> may follow
  };
  struct Candidate {
    float log_prob;  // 0 if scores are not requested
    int32_t token;
  };
  struct Segment {
    int32_t index;
    int limit;
    const int32_t* prefix;
    int prefix_length;
    uint64_t seed;
    Vector<int32_t> list;     // (N,) its shortlist; empty for all tokens
    Vector<int32_t> columns;  // (N,) the positions of their logits among those computed
    AllowedTokens allowed;
    Utf8Rules own_utf8_rules;
    const Utf8Rules* utf8_rules;
    int num_generated = 0;    // t
    int first_row = 0;        // of this step
    Vector<Row> rows, next;   // (K,) each at most; `next` is working memory
    Vector<Hypothesis> finished;  // best first, at most K

    int remaining() const { return limit - num_generated; }
    int32_t forced() const { return num_generated < prefix_length ? prefix[num_generated] : -1; }
  };

  // ---- before the first step ----

  void begin(const TfmBatch& batch) {
    const size_t B = size_t(batch.num_segments);
    segments_.clear();
    segments_.resize(B);
    open_.clear();
    const int32_t* prefix = batch.prefix_ids;
    const int32_t* allowed = batch.allowed_ids;
    for (size_t b = 0; b < B; b++) {
      Segment& segment = segments_[b];
      segment.index = int32_t(b);
      segment.prefix = prefix;
      segment.prefix_length = batch.prefix_lengths ? batch.prefix_lengths[b] : 0;
      if (prefix) prefix += segment.prefix_length;
      segment.limit = vocabulary_.raised_limit(batch.limits[b], segment.prefix, segment.prefix_length);
      segment.seed = batch.seeds ? batch.seeds[b] : 0;
      segment.allowed = {nullptr, vocabulary_.size()};
      segment.utf8_rules = &vocabulary_.utf8_rules();
      const int num_allowed = batch.allowed_lengths ? batch.allowed_lengths[b] : 0;
      if (num_allowed > 0) {
        restrict_to(segment, allowed, num_allowed);
        allowed += num_allowed;
      }
      segment.rows.resize(1);  // all hypotheses are the same before the first token, so one is enough
      segment.rows[0].ancestors.push_back(0);
      segment.rows[0].is_ending = is_ending(segment, segment.rows[0]);
      open_.push_back(int32_t(b));
    }
  }

  // Restrict a segment to these tokens, the special ones, and those of its prefix. Banned tokens are never
  // generated, but have a share of the probability.
  void restrict_to(Segment& segment, const int32_t* allowed, int count) {
    Vector<int32_t>& list = segment.list;
    list.assign(allowed, allowed + count);
    list.insert(list.end(), {eos_, start_});
    list.insert(list.end(), vocabulary_.banned().begin(), vocabulary_.banned().end());
    list.insert(list.end(), segment.prefix, segment.prefix + segment.prefix_length);
    std::sort(list.begin(), list.end());
    list.erase(std::unique(list.begin(), list.end()), list.end());
    segment.allowed = {list.data(), int(list.size())};
    segment.own_utf8_rules = vocabulary_.utf8_rules(segment.allowed);
    segment.utf8_rules = &segment.own_utf8_rules;
  }

  // Prepare to compute the logits of all shortlists of the batch, or all logits if those are nearly all. The
  // choice affects only the speed, since a segment reads only the logits of its own shortlist.
  void gather_needed() {
    needed_.clear();
    for (const Segment& segment : segments_) needed_.insert(needed_.end(), segment.list.begin(), segment.list.end());
    if (needed_.empty()) return;
    std::sort(needed_.begin(), needed_.end());
    needed_.erase(std::unique(needed_.begin(), needed_.end()), needed_.end());  // (U,)
    has_parts_ = 4 * int64_t(needed_.size()) <= 3 * int64_t(vocabulary_.size());
    for (Segment& segment : segments_) {
      segment.columns = segment.list;
      if (!has_parts_) continue;
      for (int32_t& column : segment.columns)
        column = int32_t(std::lower_bound(needed_.begin(), needed_.end(), column) - needed_.begin());
    }
    for (int m = 0; has_parts_ && m < num_models_; m++) memory_.part(m).gather(output(m).matrix(), needed_);
  }

  void encode(const TfmBatch& batch) {
    Vector<int32_t> limits;  // (B,)
    for (const Segment& segment : segments_) limits.push_back(segment.limit);
    last_check_ = std::chrono::steady_clock::now();
    for (int m = 0; m < num_models_; m++) {
      models_[m]->encode(memory_.state(m), batch, limits.data(), beam_);
      check_stop();
    }
  }

  // Close a segment without a step if its end is forced and no scores are requested.
  bool close_if_ended(Segment& segment) {
    Row& row = segment.rows[0];
    // An incomplete character has to be ended first.
    const bool ends = row.is_ending && (segment.remaining() < 1 || row.state == kBetween || segment.forced() >= 0);
    if (is_scored_ || !ends) return false;
    segment.finished.push_back({std::move(row.ids), kNaN, kNaN, {}});
    return true;
  }

  // Call `should_stop` between steps, at most every 50 ms, since it may have to wait for a lock.
  void check_stop() {
    if (!options_.should_stop) return;
    const auto now = std::chrono::steady_clock::now();
    if (now - last_check_ < std::chrono::milliseconds(50)) return;
    if (options_.should_stop()) throw Failure(TFM_STOPPED, "the search was stopped");
    last_check_ = std::chrono::steady_clock::now();
  }

  // ---- a step of the models ----

  void step() {
    groups_.clear();
    last_tokens_.clear();
    ancestors_.clear();
    rows_.clear();
    for (int32_t index : open_) {
      Segment& segment = segments_[size_t(index)];
      segment.first_row = int(rows_.size());
      groups_.push_back({index, segment.first_row, int32_t(segment.rows.size()), segment.num_generated});
      for (Row& row : segment.rows) {
        last_tokens_.push_back(row.ids.empty() ? start_ : row.ids.back());
        ancestors_.push_back(row.ancestors.data());
        rows_.push_back({&segment, &row});
      }
    }
    size_t size = 0;
    for (int m = 0; m < num_models_; m++) size += rows_.size() * size_t(width(m));
    float* hidden = memory_.hidden.get<float>(size);
    hidden_.clear();
    for (int m = 0; m < num_models_; m++) {  // (R, D) each
      hidden_.push_back(hidden);
      models_[m]->step(memory_.state(m), groups_.data(), int(groups_.size()), last_tokens_.data(),
                       beam_ > 1 ? ancestors_.data() : nullptr, hidden);
      hidden += rows_.size() * size_t(width(m));
    }
    counts_.assign(rows_.size(), 0);
    candidates_ = memory_.candidates.get<Candidate>(rows_.size() * size_t(max_candidates_));  // (R, C)
  }

  int width(int m) const { return models_[m]->options().width; }

  // ---- the likeliest next tokens of each row ----

  void find_candidates() {
    plain_.clear();
    others_.clear();
    for (int r = 0; r < int(rows_.size()); r++) (is_plain(r) ? plain_ : others_).push_back({r, kNaN});
    if (!plain_.empty()) is_scored_ ? find_top_k() : find_best();
    with_logits(others_, [&](const Task& task, float* logits) { find_in_logits(task, logits); });
  }

  // Return true if the next token of a row has no constraints but banned tokens and its end.
  bool is_plain(int r) {
    const Segment& segment = *rows_[size_t(r)].segment;
    const Row& row = *rows_[size_t(r)].row;
    if (num_models_ > 1 || segment.allowed.ids || segment.forced() >= 0) return false;
    if (options_.repetition_penalty != 1 && !row.ids.empty()) return false;
    find_repeats(row.ids, options_.no_repeat_ngram_size, memory_.repeats);
    return memory_.repeats.empty();
  }

  void find_best() {
    int32_t* ids = memory_.ids.get<int32_t>(plain_.size());  // (R,)
    if (!output(0).best(scratch(0), hidden_of_plain(), int(plain_.size()), ids)) refuse_non_finite();
    for (size_t i = 0; i < plain_.size(); i++) {
      const int r = plain_[i].row;
      counts_[size_t(r)] = 1;
      candidates_[r] = {0, ids[i]};
      if (is_wrong(r)) others_.push_back({r, 0});
    }
  }

  void find_top_k() {
    const int R = int(plain_.size()), C = max_candidates_;
    const float* hidden = hidden_of_plain();
    float* log_sums = memory_.log_sums.get<float>(size_t(R));          // (R,)
    float* values = memory_.values.get<float>(size_t(R) * size_t(C));  // (R, C)
    int32_t* ids = memory_.ids.get<int32_t>(size_t(R) * size_t(C));    // (R, C)
    output(0).top_k(scratch(0), hidden, R, C, options_.renormalize != 0, log_sums, values, ids);
    for (int i = 0; i < R; i++) {
      const int r = plain_[size_t(i)].row;
      if (!std::isfinite(log_sums[i])) refuse_non_finite();
      Candidate* own = candidates_ + int64_t(r) * C;
      int& count = counts_[size_t(r)];
      if (rows_[size_t(r)].row->is_ending) {
        float logit;
        output(0).logits_of(scratch(0), hidden + int64_t(i) * width(0), &eos_, 1, &logit);
        if (logit > -kInfinity) own[count++] = {logit - log_sums[i], eos_};
      } else {
        const float* value = values + int64_t(i) * C;
        for (; count < C && value[count] > -kInfinity; count++)
          own[count] = {value[count] - log_sums[i], ids[int64_t(i) * C + count]};
      }
      if (is_wrong(r)) others_.push_back({r, log_sums[i]});
    }
  }

  // Return true if a candidate of a row violates the UTF-8 constraint.
  bool is_wrong(int r) const {
    if (vocabulary_.bytes().empty()) return false;
    const Segment& segment = *rows_[size_t(r)].segment;
    if (segment.forced() >= 0) return false;
    const int state = rows_[size_t(r)].row->state;
    const Candidate* own = candidates_ + int64_t(r) * max_candidates_;
    return std::any_of(own, own + counts_[size_t(r)], [&](const Candidate& each) {
      return !segment.utf8_rules->may(state, segment.remaining(), vocabulary_.kind(each.token));
    });
  }

  // A row whose logits are computed, and their log-sum-exp if it is known, otherwise NaN.
  struct Task {
    int row;
    float log_sum;
  };

  const float* hidden_of_plain() {
    if (plain_.size() == rows_.size()) return hidden_[0];
    return gathered(plain_.data(), plain_.size(), 0);
  }

  const float* gathered(const Task* tasks, size_t count, int m) {
    const size_t D = size_t(width(m));
    float* out = memory_.gathered.get<float>(count * D);  // (R, D)
    for (size_t i = 0; i < count; i++) std::copy_n(hidden_[size_t(m)] + size_t(tasks[i].row) * D, D, out + i * D);
    return out;
  }

  // Call `use(task, logits (N,))` for each row; those of several models are log-mean-probabilities.
  template <class Use>
  void with_logits(const Vector<Task>& tasks, Use use) {
    const auto is_listed = [&](size_t i) { return rows_[size_t(tasks[i].row)].segment->allowed.ids != nullptr; };
    const size_t stride = round_up(size_t(vocabulary_.size()), 64);
    // The logits of this many rows at a time stay in the processor's caches.
    const size_t max_rows = std::max<size_t>(1, (size_t(1) << 20) / (stride * size_t(num_models_)));
    for (size_t from = 0, to; from < tasks.size(); from = to) {
      for (to = from + 1; to < tasks.size() && to - from < max_rows && is_listed(to) == is_listed(from);) to++;
      const size_t count = to - from;
      float* logits = memory_.logits.get<float>(count * size_t(num_models_) * stride);  // (M, R, V)
      for (int m = 0; m < num_models_; m++) {
        float* own = logits + size_t(m) * count * stride;
        if (is_listed(from)) write_listed(tasks.data() + from, count, m, own, stride);
        else output(m).logits(scratch(m), gathered(tasks.data() + from, count, m), int(count), own, long(stride));
      }
      for (size_t i = 0; i < count; i++) {
        float* own = logits + i * stride;
        if (num_models_ > 1) {
          each_model_.clear();
          for (int m = 0; m < num_models_; m++) each_model_.push_back(own + size_t(m) * count * stride);
          log_mean(each_model_.data(), num_models_, rows_[size_t(tasks[from + i].row)].segment->allowed.count);
        }
        use(tasks[from + i], own);
      }
    }
  }

  // Write the logits (N,) of rows whose segments have shortlists, `stride` apart.
  void write_listed(const Task* tasks, size_t count, int m, float* logits, size_t stride) {
    const size_t U = has_parts_ ? needed_.size() : size_t(vocabulary_.size()), needed_stride = round_up(U, 64);
    float* needed = memory_.needed_logits.get<float>(count * needed_stride);  // (R, U)
    const float* hidden = gathered(tasks, count, m);                          // (R, D)
    if (has_parts_) memory_.part(m).logits(scratch(m), hidden, int(count), needed, long(needed_stride));
    else output(m).logits(scratch(m), hidden, int(count), needed, long(needed_stride));
    for (size_t i = 0; i < count; i++) {
      const Vector<int32_t>& columns = rows_[size_t(tasks[i].row)].segment->columns;
      for (size_t n = 0; n < columns.size(); n++) logits[i * stride + n] = needed[i * needed_stride + size_t(columns[n])];
    }
  }

  const OutputLayer& output(int m) const { return models_[m]->output(); }
  OutputScratch& scratch(int m) { return memory_.state(m).output; }

  // The logits (N,) of a row with all constraints applied, in place, and the log-sum-exp that converts
  // them to log-probabilities. Source: `Constraints.apply` of `decoding/constraints.py`.
  class ConstrainedLogits {
   public:
    ConstrainedLogits(Search& search, const Task& task, float* logits)
        : search_(search), segment_(*search.rows_[size_t(task.row)].segment), row_(*search.rows_[size_t(task.row)].row),
          logits_(logits), eos_index_(segment_.allowed.index_of(search.eos_)), eos_logit_(logits[eos_index_]),
          log_sum_(task.log_sum) {
      const TfmSearchOptions& options = search.options_;
      if (options.repetition_penalty != 1)
        penalize(logits, segment_.allowed, row_.ids, float(options.repetition_penalty), search.memory_.distinct);
      const bool is_known = !std::isnan(task.log_sum);
      // Inside a character, forbidden tokens may have to be permitted again.
      const bool may_be_lifted = options.renormalize && row_.state != kBetween;
      if (may_be_lifted || (!is_known && (!options.renormalize || options.sampling))) lifted_log_sum_ = sum();
      if (!is_known && !options.renormalize) log_sum_ = lifted_log_sum_;
      forbid();
      if (!is_known && options.renormalize) log_sum_ = sum();
    }

    const AllowedTokens& allowed() const { return segment_.allowed; }
    int eos_index() const { return eos_index_; }
    float eos_logit() const { return eos_logit_; }  // without constraints
    float log_sum() const { return log_sum_; }

    // Permit only valid UTF-8.
    void restrict() {
      search_.vocabulary_.forbid(logits_, segment_.allowed, *segment_.utf8_rules, row_.state, segment_.remaining(),
                                 search_.memory_.kept);
    }
    bool has_any() const {
      return std::any_of(logits_, logits_ + segment_.allowed.count, [](float logit) { return logit > -kInfinity; });
    }
    // Permit only valid UTF-8 and lift the ban on repetitions, for a character that could not end otherwise.
    void restrict_alone() {
      for (size_t i = forbidden_.size(); i-- > 0;) logits_[forbidden_[i].index] = forbidden_[i].value;
      forbidden_.clear();
      if (search_.options_.renormalize) log_sum_ = lifted_log_sum_;
      restrict();
    }

   private:
    float sum() const {
      const float log_sum = log_sum_exp(logits_, segment_.allowed.count).total();
      if (!std::isfinite(log_sum)) refuse_non_finite();
      return log_sum;
    }

    void forbid() {
      const float eos = logits_[eos_index_];
      for (int32_t token : search_.vocabulary_.banned()) forbid(token);
      const int size = search_.options_.no_repeat_ngram_size;
      if (size > 0 && int(row_.ids.size()) >= size) {
        find_repeats(row_.ids, size, search_.memory_.repeats);
        for (int32_t token : search_.memory_.repeats) forbid(token);
        logits_[eos_index_] = eos;  // so that every row can end
      }
      const int index = segment_.forced() < 0 ? -1 : segment_.allowed.index_of(segment_.forced());
      const auto first = std::find_if(forbidden_.begin(), forbidden_.end(), [&](const Choice& each) { return each.index == index; });
      if (first != forbidden_.end()) logits_[index] = first->value;
    }
    void forbid(int32_t token) {
      const int index = segment_.allowed.index_of(token);
      if (index < 0) return;
      forbidden_.push_back({logits_[index], index});
      logits_[index] = -kInfinity;
    }

    Search& search_;
    const Segment& segment_;
    const Row& row_;
    float* logits_;
    const int eos_index_;
    const float eos_logit_;
    float log_sum_, lifted_log_sum_ = kNaN;  // the latter including forbidden tokens
    Vector<Choice> forbidden_;               // the overwritten logits, in the order of overwriting
  };

  // Source: `_continuations` of `decoding/beam.py`.
  void find_in_logits(const Task& task, float* logits) {
    const int r = task.row;
    const Segment& segment = *rows_[size_t(r)].segment;
    const Row& row = *rows_[size_t(r)].row;
    ConstrainedLogits constrained(*this, task, logits);
    const int32_t forced = segment.forced();
    Vector<Choice>& found = memory_.found;
    if (row.is_ending) {
      found.assign(1, {constrained.eos_logit(), constrained.eos_index()});
    } else if (forced >= 0) {
      const int index = constrained.allowed().index_of(forced);
      found.assign(1, {logits[index], index});
    } else {
      find_largest(logits, constrained.allowed().count, max_candidates_, found);
    }
    store_candidates(r, constrained, found);
    if (!is_wrong(r)) return;
    bool is_stuck = row.is_ending;  // inside a character, since outside one the end would be valid
    if (!is_stuck) {
      constrained.restrict();
      find_largest(logits, constrained.allowed().count, max_candidates_, found);
      is_stuck = found.empty();
    }
    if (is_stuck) {
      constrained.restrict_alone();
      find_largest(logits, constrained.allowed().count, max_candidates_, found);
    }
    store_candidates(r, constrained, found);
  }

  void store_candidates(int r, const ConstrainedLogits& constrained, const Vector<Choice>& found) {
    int& count = counts_[size_t(r)];
    count = 0;
    Candidate* own = candidates_ + int64_t(r) * max_candidates_;
    for (const Choice& each : found)
      if (each.value > -kInfinity)
        own[count++] = {is_scored_ ? each.value - constrained.log_sum() : 0, constrained.allowed().token(each.index)};
  }

  // ---- the next step of a segment ----

  // Select the best continuations of a segment; return true if it needs more steps.
  bool advance(Segment& segment) {
    const int K = int(segment.rows.size());
    const double norm = is_scored_ ? length_norm(segment.num_generated + 1, options_) : 1;
    int heads[kMaxBeams] = {};  // the first candidate of each row that is not taken
    uint16_t uses[kMaxBeams] = {};
    chosen_.clear();
    // The best 2K of all, of which at least K do not end; the candidates of a row are sorted.
    for (int taken = 0; taken < 2 * beam_ && int(chosen_.size()) < beam_; taken++) {
      int best = -1;
      float best_total = -kInfinity;
      for (int k = 0; k < K; k++) {
        if (heads[k] == counts_[size_t(segment.first_row + k)]) continue;
        const float total = segment.rows[size_t(k)].total + candidate(segment, k, heads[k]).log_prob;
        if (total > best_total) {
          best = k;
          best_total = total;
        }
      }
      if (best < 0) break;
      const Candidate& next = candidate(segment, best, heads[best]++);
      if (next.token != eos_) {
        chosen_.push_back({best, best_total, next});
        uses[best]++;
      } else if (taken < beam_) {
        finish(segment, segment.rows[size_t(best)], best_total, norm, next.log_prob);
      }
    }
    if (chosen_.empty()) return false;
    const double best_growing = double(chosen_[0].total / float(norm));
    if (is_decided(segment, best_growing)) return false;
    reorder_and_append(segment, uses);
    return !close_if_ended(segment);
  }

  const Candidate& candidate(const Segment& segment, int k, int i) const {
    return candidates_[int64_t(segment.first_row + k) * max_candidates_ + i];
  }

  // Return true if a segment needs no more steps, given the best growing score.
  bool is_decided(const Segment& segment, double best_growing) const {
    if (int(segment.finished.size()) < beam_) return false;
    if (options_.early_stopping || beam_ == 1) return true;
    return segment.finished.back().score >= best_growing;
  }

  // Reorder the rows and append the next tokens; `uses`: the number of continuations of each row. The
  // caches of the models stay where they are, since each row stores its ancestors.
  void reorder_and_append(Segment& segment, uint16_t* uses) {
    const int K = int(chosen_.size());
    if (int(segment.next.size()) < K) segment.next.resize(size_t(K));
    segment.num_generated++;
    for (int k = 0; k < K; k++) {
      const Chosen& chosen = chosen_[size_t(k)];
      Row& from = segment.rows[size_t(chosen.parent)];
      Row& to = segment.next[size_t(k)];
      if (--uses[chosen.parent] == 0) {  // its last continuation
        to.ids.swap(from.ids);
        to.ancestors.swap(from.ancestors);
        to.token_log_probs.swap(from.token_log_probs);
      } else {
        to.ids = from.ids;
        to.ancestors = from.ancestors;
        to.token_log_probs = from.token_log_probs;
      }
      to.total = chosen.total;
      to.ids.push_back(chosen.next.token);  // (t + 1,)
      if (beam_ > 1) to.ancestors.push_back(uint8_t(k));
      if (options_.token_log_probs) to.token_log_probs.push_back(chosen.next.log_prob);
      to.state = next_state(from.state, vocabulary_.kind(chosen.next.token));
      to.is_ending = is_ending(segment, to);
    }
    segment.rows.swap(segment.next);
    if (int(segment.rows.size()) > K) segment.rows.resize(size_t(K));
  }

  bool is_ending(const Segment& segment, const Row& row) const {
    return segment.remaining() < 1 || (options_.stops_loops && !options_.sampling && is_loop(row.ids));
  }

  void finish(Segment& segment, const Row& row, double total, double norm, float log_prob) {
    Hypothesis hypothesis{row.ids, kNaN, kNaN, {}};
    if (is_scored_) {
      hypothesis.log_probability = total;
      hypothesis.score = total / norm;
      if (options_.token_log_probs) {
        hypothesis.token_log_probs = row.token_log_probs;
        hypothesis.token_log_probs.push_back(log_prob);  // (t + 1,)
      }
    }
    // Insert it after equal scores, and store at most K.
    Vector<Hypothesis>& finished = segment.finished;
    const auto position = std::find_if(finished.begin(), finished.end(), [&](const Hypothesis& other) {
      return other.score < hypothesis.score;
    });
    finished.insert(position, std::move(hypothesis));
    if (int(finished.size()) > beam_) finished.pop_back();
  }

  // ---- sampling: `decoding/sampling.py` ----

  void draw_next() {
    others_.clear();
    for (int r = 0; r < int(rows_.size()); r++) others_.push_back({r, kNaN});
    with_logits(others_, [&](const Task& task, float* logits) {
      const Segment& segment = *rows_[size_t(task.row)].segment;
      candidates_[task.row] = drawn(segment, *rows_[size_t(task.row)].row, task, logits);
      counts_[size_t(task.row)] = 1;
    });
  }

  Candidate drawn(const Segment& segment, const Row& row, const Task& task, float* logits) {
    ConstrainedLogits constrained(*this, task, logits);
    int index = constrained.eos_index();
    if (!row.is_ending && segment.forced() >= 0) {
      index = constrained.allowed().index_of(segment.forced());
    } else if (!row.is_ending) {
      if (!vocabulary_.bytes().empty()) {
        constrained.restrict();
        if (row.state != kBetween && !constrained.has_any()) constrained.restrict_alone();
      }
      const double number = uniform(segment.seed, uint64_t(segment.num_generated));
      index = memory_.draw(logits, constrained.allowed().count, number, options_.temperature, options_.top_k, options_.top_p);
      if (index < 0) refuse_non_finite();
    }
    const float log_prob = logits[index] - constrained.log_sum();
    if (!std::isfinite(log_prob)) refuse_non_finite();
    return {log_prob, constrained.allowed().token(index)};
  }

  // Append the drawn token; return true if the segment needs more steps.
  bool append_drawn(Segment& segment) {
    Row& row = segment.rows[0];
    const Candidate& next = candidates_[segment.first_row];
    row.exact_total += double(next.log_prob);
    if (next.token == eos_) {
      finish(segment, row, row.exact_total, length_norm(segment.num_generated + 1, options_), next.log_prob);
      return false;
    }
    row.ids.push_back(next.token);  // (t + 1,)
    if (options_.token_log_probs) row.token_log_probs.push_back(next.log_prob);
    row.state = next_state(row.state, vocabulary_.kind(next.token));
    segment.num_generated++;
    row.is_ending = is_ending(segment, row);
    return true;
  }

  struct Chosen {
    int parent;
    float total;
    Candidate next;
  };
  struct OpenRow {
    Segment* segment;
    Row* row;
  };

  const Transformer* const* models_;
  const int num_models_;
  const Vocabulary& vocabulary_;
  const TfmSearchOptions& options_;
  SearchMemory& memory_;
  const int32_t eos_, start_;
  const int beam_;               // K
  const bool is_scored_;         // true if log-probabilities are computed
  const int max_candidates_;     // C
  Vector<Segment> segments_;     // (B,)
  Vector<int32_t> open_;         // segments that need more steps
  Vector<int32_t> needed_;       // (U,) tokens of all shortlists, ascending
  bool has_parts_ = false;       // true if only the logits of `needed_` are computed
  std::chrono::steady_clock::time_point last_check_;

  // Data of a step.
  Vector<Group> groups_;
  Vector<OpenRow> rows_;                // (R,)
  Vector<int32_t> last_tokens_;         // (R,)
  Vector<const uint8_t*> ancestors_;    // (R,)
  Vector<float*> hidden_, each_model_;  // (M,)
  Vector<int> counts_;                  // (R,) candidates of each row
  Candidate* candidates_ = nullptr;     // (R, C)
  Vector<Task> plain_, others_;
  Vector<Chosen> chosen_;
};

}  // namespace tfm
