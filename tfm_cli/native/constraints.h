// What bears on the next piece besides the model, in the rules of `decoding/`: loops, runs of pieces
// that were there before, penalties for repetition, and valid UTF-8.
//
// V vocabulary, t pieces written, N pieces among which a row is searched
#pragma once
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>

#include "allocation.h"
#include "vectors.h"

namespace tfm {

// ---- loops: `decoding/loops.py` ----

constexpr int kLongestPeriod = 8;    // pieces that are repeated
constexpr int kRepeatedPieces = 24;  // so many of the newest are a repetition of those before them

// Whether a translation ends in at least four passes over at most eight pieces.
inline bool is_loop(const Vector<int32_t>& ids) {
  const int length = int(ids.size());
  if (length <= kRepeatedPieces) return false;
  const int32_t* end = ids.data() + length;
  for (int period = 1; period <= std::min(kLongestPeriod, length - kRepeatedPieces); period++)
    if (end[-1] == end[-1 - period] && std::equal(end - kRepeatedPieces, end, end - kRepeatedPieces - period))
      return true;
  return false;
}

// ---- the pieces among which a row is searched ----

// Piece `ids[i]` has place i among them; without `ids` a piece is its own place.
struct Pieces {
  const int32_t* ids = nullptr;  // (N,) ascending
  int count = 0;                 // N

  int32_t piece(int place) const { return ids ? ids[place] : place; }
  // -1 for a piece that is not among them.
  int place(int32_t piece) const {
    if (!ids) return piece;
    const int32_t* found = std::lower_bound(ids, ids + count, piece);
    return found != ids + count && *found == piece ? int(found - ids) : -1;
  }
};

// ---- repetition: `decoding/constraints.py` ----

// The logits (N,) of pieces that were written are lowered: positive ones divided by the penalty,
// negative ones multiplied with it.
//
// Source: Keskar et al. 2019, arXiv:1909.05858, section 4.1, for positive logits; the negative ones
// are multiplied, since a division would raise them.
inline void penalize(float* logits, const Pieces& pieces, const Vector<int32_t>& written, float penalty,
                     Vector<int32_t>& distinct) {
  distinct.assign(written.begin(), written.end());
  std::sort(distinct.begin(), distinct.end());
  distinct.erase(std::unique(distinct.begin(), distinct.end()), distinct.end());
  for (int32_t piece : distinct) {
    const int place = pieces.place(piece);
    if (place >= 0) logits[place] = logits[place] > 0 ? logits[place] / penalty : logits[place] * penalty;
  }
}

// The pieces that would end a run of `size` pieces that was there before, some of them several times.
inline void find_repeats(const Vector<int32_t>& written, int size, Vector<int32_t>& ends) {
  ends.clear();
  const int length = int(written.size());
  if (size == 0 || length < size) return;
  const int32_t* newest = written.data() + length - (size - 1);  // (size - 1,)
  for (int start = 0; start + size <= length; start++)
    if (std::equal(newest, newest + size - 1, written.data() + start)) ends.push_back(written[start + size - 1]);
}

// ---- valid UTF-8: `decoding/utf8.py` ----

// Bytes that may follow in the same places, first and last; those of table 3-7 of the Unicode Standard
// (RFC 3629). The kind of a piece is 0 for a whole piece or </s>, i + 1 for a byte of range i, and
// kNever for a byte that may not be written.
constexpr std::array<std::array<uint8_t, 2>, 12> kByteRanges = {{
    {0x00, 0x7F}, {0x80, 0x8F}, {0x90, 0x9F}, {0xA0, 0xBF}, {0xC2, 0xDF}, {0xE0, 0xE0},
    {0xE1, 0xEC}, {0xED, 0xED}, {0xEE, 0xEF}, {0xF0, 0xF0}, {0xF1, 0xF3}, {0xF4, 0xF4},
}};
constexpr int kWhole = 0, kNever = int(kByteRanges.size()) + 1, kNumKinds = kNever + 1;

// What a hypothesis is inside of: nothing, or a character whose next byte is restricted.
enum CharacterState : uint8_t { kBetween, kOne, kTwo, kAfterE0, kAfterEd, kThree, kAfterF0, kAfterF4, kNumStates };

constexpr int kLow = 2, kMiddle = 3, kHigh = 4;  // kinds of continuation bytes

// For each state inside a character the first and last kind that may follow, and the state after them.
struct Continuation {
  uint8_t first, last, after;
};
constexpr std::array<Continuation, kNumStates> kContinuations = {{
    {1, 0, kBetween},  // no character is begun
    {kLow, kHigh, kBetween}, {kLow, kHigh, kOne}, {kHigh, kHigh, kOne}, {kLow, kMiddle, kOne},
    {kLow, kHigh, kTwo}, {kMiddle, kHigh, kTwo}, {kLow, kLow, kTwo},
}};
constexpr int kNone = -1;
// The state after a kind that begins anew; kNone for one that begins nothing.
constexpr std::array<int8_t, kNumKinds> kFirst = {
    kBetween, kBetween, kNone, kNone, kNone, kOne, kAfterE0, kTwo, kAfterEd, kTwo, kAfterF0, kThree, kAfterF4, kNone,
};

constexpr bool is_valid_next(int state, int kind) {
  if (state == kBetween) return kFirst[kind] != kNone;
  return kind >= kContinuations[state].first && kind <= kContinuations[state].last;
}

// The state after a piece; one that may not follow begins anew.
constexpr uint8_t next_state(int state, int kind) {
  if (state != kBetween && is_valid_next(state, kind)) return kContinuations[state].after;
  return kFirst[kind] == kNone ? uint8_t(kBetween) : uint8_t(kFirst[kind]);
}

constexpr int kLongestCharacter = 4;  // bytes; more room than that makes no difference

// Whether a kind may follow by state and room: a byte may if the pieces that are there can end its
// character within the room.
class Spelling {
 public:
  Spelling() = default;
  explicit Spelling(const std::array<bool, kNumKinds>& available) {
    constexpr int unreachable = 2 * kLongestCharacter + 1;  // more than there is ever room for
    int missing[kNumStates] = {};                           // fewest pieces that end the character
    for (int state = kOne; state < kNumStates; state++) {   // each after the one that follows it
      const Continuation& next = kContinuations[state];
      bool is_possible = false;
      for (int kind = next.first; kind <= next.last; kind++) is_possible |= available[kind];
      missing[state] = is_possible ? missing[next.after] + 1 : unreachable;
    }
    for (int state = 0; state < kNumStates; state++)
      for (int kind = 0; kind < kNumKinds; kind++) {
        const int needed = kind == kWhole ? 0 : 1 + missing[next_state(state, kind)];  // it may be </s>
        for (int room = 0; room <= kLongestCharacter; room++)
          may_[state][room][kind] = is_valid_next(state, kind) && room >= needed;
      }
  }

  // room: pieces that may still be written, this one included.
  bool may(int state, int room, int kind) const {
    return may_[state][std::clamp(room, 0, kLongestCharacter)][kind];
  }

 private:
  bool may_[kNumStates][kLongestCharacter + 1][kNumKinds] = {};
};

// Which pieces are never written, and which of them are bytes.
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
    for (int32_t piece = 0; piece < size; piece++) {
      if (byte_values[piece] < 0) continue;
      kinds_[size_t(piece)] = is_banned_[size_t(piece)] ? kNever : kind_of(byte_values[piece]);
      bytes_.push_back(piece);
    }
    whole_ = spelling({nullptr, size});
  }

  int size() const { return int(is_banned_.size()); }
  const Vector<int32_t>& banned() const { return banned_; }
  bool is_banned(int32_t piece) const { return is_banned_[size_t(piece)] != 0; }
  const Vector<int32_t>& bytes() const { return bytes_; }
  int kind(int32_t piece) const { return bytes_.empty() ? kWhole : kinds_[size_t(piece)]; }
  // What may follow where all pieces may be written.
  const Spelling& spelling() const { return whole_; }
  // … or these alone: a segment that lacks the last bytes of a character never begins it.
  Spelling spelling(const Pieces& pieces) const {
    std::array<bool, kNumKinds> available = {};
    if (pieces.ids) {
      for (int i = 0; i < pieces.count; i++) available[size_t(kind(pieces.ids[i]))] = true;
    } else {
      for (int32_t piece : bytes_) available[size_t(kind(piece))] = true;
    }
    return Spelling(available);
  }
  // The limit of a segment, raised where its prefix ends inside a character that has no room.
  int raised_limit(int limit, const int32_t* prefix, int length) const {
    if (bytes_.empty()) return limit;
    int state = kBetween;
    for (int i = 0; i < length; i++) state = next_state(state, kind(prefix[i]));
    for (; state != kBetween; length++) state = kContinuations[size_t(state)].after;
    return std::max(limit, length);
  }
  // Set the logits (N,) of pieces that may not follow to -inf; `kept` is working memory.
  void forbid(float* logits, const Pieces& pieces, const Spelling& rules, int state, int room,
              Vector<float>& kept) const {
    const auto allowed = [&](int32_t piece) { return rules.may(state, room, kind(piece)); };
    if (pieces.ids) {
      for (int i = 0; i < pieces.count; i++)
        if ((state != kBetween || kind(pieces.ids[i]) != kWhole) && !allowed(pieces.ids[i])) logits[i] = -kInfinity;
      return;
    }
    kept.clear();
    for (int32_t piece : bytes_) kept.push_back(allowed(piece) ? logits[piece] : -kInfinity);
    if (state != kBetween) std::fill(logits, logits + pieces.count, -kInfinity);
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
  Spelling whole_;
};

}  // namespace tfm
