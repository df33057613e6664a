// Constraints on the next token, with the rules of `decoding/`: loops, repeated n-grams, the repetition
// penalty, and valid UTF-8.
//
// V vocabulary, t tokens generated, N tokens that a row may generate
#pragma once
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>

#include "allocation.h"
#include "vectors.h"

namespace tfm {

// ---- loops: `is_loop` of `decoding/constraints.py` ----

constexpr int kMaxPeriod = 8;        // in tokens, of a loop
constexpr int kRepeatedTokens = 24;  // number of last tokens that must repeat those before them

// Return true if a translation ends in at least four passes over at most eight tokens.
inline bool is_loop(const Vector<int32_t>& ids) {
  const int length = int(ids.size());
  if (length <= kRepeatedTokens) return false;
  const int32_t* end = ids.data() + length;
  for (int period = 1; period <= std::min(kMaxPeriod, length - kRepeatedTokens); period++)
    if (end[-1] == end[-1 - period] && std::equal(end - kRepeatedTokens, end, end - kRepeatedTokens - period))
      return true;
  return false;
}

// ---- the tokens that a row may generate ----

// Token `ids[i]` has index i; without `ids` the index of a token is its id.
struct AllowedTokens {
  const int32_t* ids = nullptr;  // (N,) ascending
  int count = 0;                 // N

  int32_t token(int index) const { return ids ? ids[index] : index; }
  // Return the index of a token, or -1 if the row may not generate it.
  int index_of(int32_t token) const {
    if (!ids) return token;
    const int32_t* found = std::lower_bound(ids, ids + count, token);
    return found != ids + count && *found == token ? int(found - ids) : -1;
  }
};

// ---- repetition: `decoding/constraints.py` ----

// Lower the logits (N,) of tokens already generated: divide positive ones by the penalty, multiply
// negative ones by it.
//
// Source: Keskar et al. 2019, arXiv:1909.05858, section 4.1, for positive logits; the negative ones
// are multiplied, since a division would raise them.
inline void penalize(float* logits, const AllowedTokens& allowed, const Vector<int32_t>& generated, float penalty,
                     Vector<int32_t>& distinct) {
  distinct.assign(generated.begin(), generated.end());
  std::sort(distinct.begin(), distinct.end());
  distinct.erase(std::unique(distinct.begin(), distinct.end()), distinct.end());
  for (int32_t token : distinct) {
    const int index = allowed.index_of(token);
    if (index >= 0) logits[index] = logits[index] > 0 ? logits[index] / penalty : logits[index] * penalty;
  }
}

// Find the tokens that would repeat an n-gram of `size` tokens, some of them several times.
inline void find_repeats(const Vector<int32_t>& generated, int size, Vector<int32_t>& ends) {
  ends.clear();
  const int length = int(generated.size());
  if (size == 0 || length < size) return;
  const int32_t* last = generated.data() + length - (size - 1);  // (size - 1,)
  for (int start = 0; start + size <= length; start++)
    if (std::equal(last, last + size - 1, generated.data() + start)) ends.push_back(generated[start + size - 1]);
}

// ---- valid UTF-8: `decoding/utf8.py` ----

// First and last byte of ranges whose bytes are permitted in the same positions, from table 3-7 of the
// Unicode Standard (RFC 3629). The kind of a token is 0 for text or </s>, i + 1 for a byte of range i, and
// kNever for a byte that must not be generated.
constexpr std::array<std::array<uint8_t, 2>, 12> kByteRanges = {{
    {0x00, 0x7F}, {0x80, 0x8F}, {0x90, 0x9F}, {0xA0, 0xBF}, {0xC2, 0xDF}, {0xE0, 0xE0},
    {0xE1, 0xEC}, {0xED, 0xED}, {0xEE, 0xEF}, {0xF0, 0xF0}, {0xF1, 0xF3}, {0xF4, 0xF4},
}};
constexpr int kWhole = 0, kNever = int(kByteRanges.size()) + 1, kNumKinds = kNever + 1;

// The states of a hypothesis: between characters, or inside one whose next byte is restricted.
enum CharacterState : uint8_t { kBetween, kOne, kTwo, kAfterE0, kAfterEd, kThree, kAfterF0, kAfterF4, kNumStates };

constexpr int kLow = 2, kMiddle = 3, kHigh = 4;  // kinds of continuation bytes

// For each state inside a character, the first and last kind that may follow, and the state after them.
struct Continuation {
  uint8_t first, last, after;
};
constexpr std::array<Continuation, kNumStates> kContinuations = {{
    {1, 0, kBetween},  // between characters
    {kLow, kHigh, kBetween}, {kLow, kHigh, kOne}, {kHigh, kHigh, kOne}, {kLow, kMiddle, kOne},
    {kLow, kHigh, kTwo}, {kMiddle, kHigh, kTwo}, {kLow, kLow, kTwo},
}};
constexpr int kNone = -1;
// The state after each kind that begins a character; kNone for kinds that cannot begin one.
constexpr std::array<int8_t, kNumKinds> kFirst = {
    kBetween, kBetween, kNone, kNone, kNone, kOne, kAfterE0, kTwo, kAfterEd, kTwo, kAfterF0, kThree, kAfterF4, kNone,
};

constexpr bool is_valid_next(int state, int kind) {
  if (state == kBetween) return kFirst[kind] != kNone;
  return kind >= kContinuations[state].first && kind <= kContinuations[state].last;
}

// Return the state after a token; one that may not follow begins a new character.
constexpr uint8_t next_state(int state, int kind) {
  if (state != kBetween && is_valid_next(state, kind)) return kContinuations[state].after;
  return kFirst[kind] == kNone ? uint8_t(kBetween) : uint8_t(kFirst[kind]);
}

constexpr int kMaxCharacterBytes = 4;  // larger numbers of remaining tokens make no difference

// The kinds that may follow, by state and number of remaining tokens: a byte may follow if the available
// tokens can end its character within the remaining ones.
class Utf8Rules {
 public:
  Utf8Rules() = default;
  explicit Utf8Rules(const std::array<bool, kNumKinds>& available) {
    constexpr int unreachable = 2 * kMaxCharacterBytes + 1;  // more tokens than may ever remain
    int missing[kNumStates] = {};                           // fewest tokens that end the character
    for (int state = kOne; state < kNumStates; state++) {   // each after the one that follows it
      const Continuation& next = kContinuations[state];
      bool is_possible = false;
      for (int kind = next.first; kind <= next.last; kind++) is_possible |= available[kind];
      missing[state] = is_possible ? missing[next.after] + 1 : unreachable;
    }
    for (int state = 0; state < kNumStates; state++)
      for (int kind = 0; kind < kNumKinds; kind++) {
        const int needed = kind == kWhole ? 0 : 1 + missing[next_state(state, kind)];  // it may be </s>
        for (int remaining = 0; remaining <= kMaxCharacterBytes; remaining++)
          may_[state][remaining][kind] = is_valid_next(state, kind) && remaining >= needed;
      }
  }

  // remaining: tokens that may still be generated, this one included.
  bool may(int state, int remaining, int kind) const {
    return may_[state][std::clamp(remaining, 0, kMaxCharacterBytes)][kind];
  }

 private:
  bool may_[kNumStates][kMaxCharacterBytes + 1][kNumKinds] = {};
};

// The tokens that are never generated, and those that stand for bytes.
class Vocabulary {
 public:
  // banned: (num_banned,) ids; byte_values: (V,) or nullptr.
  Vocabulary(const int32_t* banned, int num_banned, const int16_t* byte_values, int size) {
    is_banned_.assign(size_t(size), 0);
    for (int i = 0; i < num_banned; i++) {
      if (!is_banned_[size_t(banned[i])]) banned_.push_back(banned[i]);
      is_banned_[size_t(banned[i])] = 1;
    }
    std::sort(banned_.begin(), banned_.end());
    if (!byte_values) return;
    kinds_.assign(size_t(size), kWhole);  // (V,)
    for (int32_t token = 0; token < size; token++) {
      if (byte_values[token] < 0) continue;
      kinds_[size_t(token)] = is_banned_[size_t(token)] ? kNever : kind_of(byte_values[token]);
      bytes_.push_back(token);
    }
    whole_ = utf8_rules({nullptr, size});
  }

  int size() const { return int(is_banned_.size()); }
  const Vector<int32_t>& banned() const { return banned_; }
  bool is_banned(int32_t token) const { return is_banned_[size_t(token)] != 0; }
  const Vector<int32_t>& bytes() const { return bytes_; }
  int kind(int32_t token) const { return bytes_.empty() ? kWhole : kinds_[size_t(token)]; }
  // Return the rules if all tokens may be generated.
  const Utf8Rules& utf8_rules() const { return whole_; }
  // Return the rules if only these tokens may be generated. A segment that lacks the last bytes of a character
  // never begins it.
  Utf8Rules utf8_rules(const AllowedTokens& allowed) const {
    std::array<bool, kNumKinds> available = {};
    if (allowed.ids) {
      for (int i = 0; i < allowed.count; i++) available[size_t(kind(allowed.ids[i]))] = true;
    } else {
      for (int32_t token : bytes_) available[size_t(kind(token))] = true;
    }
    return Utf8Rules(available);
  }
  // Return the limit of a segment, raised if its prefix needs more tokens to end a character.
  int raised_limit(int limit, const int32_t* prefix, int length) const {
    if (bytes_.empty()) return limit;
    int state = kBetween;
    for (int i = 0; i < length; i++) state = next_state(state, kind(prefix[i]));
    for (; state != kBetween; length++) state = kContinuations[size_t(state)].after;
    return std::max(limit, length);
  }
  // Set the logits (N,) of tokens that may not follow to -inf; `kept` is working memory.
  void forbid(float* logits, const AllowedTokens& allowed, const Utf8Rules& rules, int state, int remaining,
              Vector<float>& kept) const {
    const auto may_follow = [&](int32_t token) { return rules.may(state, remaining, kind(token)); };
    if (allowed.ids) {
      for (int i = 0; i < allowed.count; i++)
        if ((state != kBetween || kind(allowed.ids[i]) != kWhole) && !may_follow(allowed.ids[i])) logits[i] = -kInfinity;
      return;
    }
    kept.clear();
    for (int32_t token : bytes_) kept.push_back(may_follow(token) ? logits[token] : -kInfinity);
    if (state != kBetween) std::fill(logits, logits + allowed.count, -kInfinity);
    for (size_t i = 0; i < bytes_.size(); i++) logits[bytes_[i]] = kept[i];
  }

 private:
  static uint8_t kind_of(int value) {
    for (size_t i = 0; i < kByteRanges.size(); i++)
      if (kByteRanges[i][0] <= value && value <= kByteRanges[i][1]) return uint8_t(i + 1);
    return kNever;
  }

  Vector<uint8_t> is_banned_, kinds_;  // (V,) each
  Vector<int32_t> banned_, bytes_;     // ids, ascending
  Utf8Rules whole_;
};

}  // namespace tfm
