// Kernels of training in bf16: attention with its gradient, and what lies between the products.
//
// All products have bf16 factors and float32 sums; no sum depends on the number of threads. The
// right factor of a product is packed by pairs of its rows: dword [row / 2][column] holds two.

#include <immintrin.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#if !defined(__AVX512BF16__) || !defined(__AVX512BW__) || !defined(__AVX512VL__)
#error "this CPU has no AVX-512 with BF16"
#endif

typedef uint16_t bf16;
constexpr int64_t BLOCK = 64;  // queries and keys that are worked on together
constexpr float HIDDEN = -1e30f;

struct Attention {  // `_Attention` of native_training.py
  int64_t items, heads, kv_heads, width, queries, keys;  // kv_heads: each for as many queries
  // (items, steps, heads, width), a head's numbers together: strides of an item and of a step
  const bf16 *q, *k, *v;
  int64_t q_item, q_step, k_item, k_step;  // values lie as keys do
  const float *cos, *sin;  // (steps, width / 2) by which queries and keys are turned, or null
  int64_t angles_item;     // stride of an item; 0: all alike
  const uint8_t *mask;     // (items, keys): which may be seen, or null
  int64_t causal, prefix;
  bf16 *y;       // (items, queries, heads, width)
  float *total;  // (items, heads, queries): log of the sum of exp(score)
  const bf16 *grad_y;
  bf16 *grad_q, *grad_k, *grad_v;  // laid out as q, k and v
  int64_t threads;
};

// ---------------------------------------------------------------------------------- small functions

static inline __m512 wide(__m256i x) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}

static inline __m256i narrow(__m512 x) { return (__m256i)_mm512_cvtneps_pbh(x); }

static inline void put(bf16 *to, __m512 x) { _mm256_storeu_si256((__m256i *)to, narrow(x)); }
static inline void put(float *to, __m512 x) { _mm512_storeu_ps(to, x); }
// Of some; stores with a mask are slow on AMD's CPUs.
static inline void put(bf16 *to, __mmask16 in, __m512 x) {
  in == 0xffff ? put(to, x) : _mm256_mask_storeu_epi16(to, in, narrow(x));
}

static inline __mmask16 first(int64_t n) { return n >= 16 ? 0xffff : n <= 0 ? 0 : (1 << n) - 1; }

static inline __m512 exp_(__m512 x) {  // within 2 ulp; of what is below -110 the same, 0
  x = _mm512_max_ps(_mm512_set1_ps(-110.0f), x);  // NaN stays what it is
  const __m512 y = _mm512_mul_ps(x, _mm512_set1_ps(1.44269504f));
  const __m512 n = _mm512_roundscale_ps(y, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693145752f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(1.42860677e-6f), r);
  __m512 p = _mm512_set1_ps(1 / 720.0f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1 / 120.0f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1 / 24.0f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1 / 6.0f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(p, n);
}

// 2^x, for what is rounded to bf16 or added up to be so: within 3e-6 of it.
static inline __m512 power_of_two(__m512 x) {
  const __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 r = _mm512_sub_ps(x, n);
  __m512 p = _mm512_set1_ps(9.58265747e-3f);  // fitted
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.59057623e-2f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(2.40240978e-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(6.93124272e-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(p, n);
}
constexpr float LOG2E = 1.44269504f;

// Of two rows of a right factor, packed.
static inline __m512i pairs_of(__m256i first_row, __m256i second_row) {
  return _mm512_or_si512(_mm512_cvtepu16_epi32(first_row),
                         _mm512_slli_epi32(_mm512_cvtepu16_epi32(second_row), 16));
}

// 16 rows of 16 dwords, turned.
static inline void turn(__m512i *r) {
  __m512i t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]), r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
  }
}

// Two rows in bf16: one behind the other, and packed.
static inline __m512i narrow(__m512 first_row, __m512 second_row) {
  return (__m512i)_mm512_cvtne2ps_pbh(second_row, first_row);
}

static inline __m512i packed(__m512i rows) {
  alignas(64) static const uint16_t order[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,
                                                 21, 6, 22, 7, 23, 8,  24, 9,  25, 10, 26,
                                                 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return _mm512_permutexvar_epi16(_mm512_load_si512(order), rows);
}

// ----------------------------------------------------------------------------------------- product

// Pairs of the left factor: those of a row together, or tiles of TALL rows, pair after pair.
constexpr int TALL = 6;
struct Rows {
  const bf16 *x;
  int64_t length;
  int32_t pair(int64_t m, int64_t p) const {
    int32_t found;
    std::memcpy(&found, x + m * length + 2 * p, 4);
    return found;
  }
  Rows from(int64_t m) const { return {x + m * length, length}; }
};
struct Tiles {
  const uint32_t *x;
  int64_t pairs;
  int32_t pair(int64_t m, int64_t p) const { return x[p * TALL + m]; }
  Tiles from(int64_t m) const { return {x + m * pairs, pairs}; }
};

template <int M, int N, class Left, class Out>
static void tile(Left a, const uint32_t *b, int64_t ldb, int64_t pairs, Out *c, int64_t ldc,
                 bool add) {
  __m512 sum[M][N];
#pragma GCC unroll 6
  for (int m = 0; m < M; m++)
    for (int n = 0; n < N; n++) {
      sum[m][n] = _mm512_setzero_ps();
      if constexpr (sizeof(Out) == 4)
        if (add) sum[m][n] = _mm512_loadu_ps(c + m * ldc + 16 * n);
    }
  for (int64_t p = 0; p < pairs; p++) {
    __m512i right[N];
    for (int n = 0; n < N; n++) right[n] = _mm512_loadu_si512(b + p * ldb + 16 * n);
    for (int m = 0; m < M; m++) {
      const __m512i left = _mm512_set1_epi32(a.pair(m, p));
      for (int n = 0; n < N; n++)
        sum[m][n] = _mm512_dpbf16_ps(sum[m][n], (__m512bh)left, (__m512bh)right[n]);
    }
  }
#pragma GCC unroll 6
  for (int m = 0; m < M; m++)
    for (int n = 0; n < N; n++) put(c + m * ldc + 16 * n, sum[m][n]);
}

template <int N, class Left, class Out>
static void column(int64_t M, Left a, const uint32_t *b, int64_t ldb, int64_t pairs, Out *c,
                   int64_t ldc, bool add) {
  for (; M >= TALL; M -= TALL, a = a.from(TALL), c += TALL * ldc)
    tile<TALL, N>(a, b, ldb, pairs, c, ldc, add);
  if (M == 5) tile<5, N>(a, b, ldb, pairs, c, ldc, add);
  if (M == 4) tile<4, N>(a, b, ldb, pairs, c, ldc, add);
  if (M == 3) tile<3, N>(a, b, ldb, pairs, c, ldc, add);
  if (M == 2) tile<2, N>(a, b, ldb, pairs, c, ldc, add);
  if (M == 1) tile<1, N>(a, b, ldb, pairs, c, ldc, add);
}

// c (M, N) = or += a (M, 2 pairs) b (2 pairs, N), N a multiple of 16.
template <class Left, class Out>
static void product(int64_t M, int64_t N, int64_t pairs, Left a, const uint32_t *b, int64_t ldb,
                    Out *c, int64_t ldc, bool add) {
  for (; N >= 64; N -= 64, b += 64, c += 64) column<4>(M, a, b, ldb, pairs, c, ldc, add);
  if (N >= 32) column<2>(M, a, b, ldb, pairs, c, ldc, add), N -= 32, b += 32, c += 32;
  if (N == 16) column<1>(M, a, b, ldb, pairs, c, ldc, add);
}

// ----------------------------------------------------------------------------------------- layouts

// Memory of a thread, kept for the next call.
struct Room {
  uint8_t *start = nullptr;
  size_t size = 0, used = 0;
  ~Room() { std::free(start); }
  void begin(size_t wanted) {
    used = 0;
    if (wanted <= size) return;
    std::free(start);
    size = (wanted + 4095) / 4096 * 4096;
    start = (uint8_t *)std::aligned_alloc(4096, size);
    if (!start) std::abort();
  }
  template <class T>
  T *take(int64_t count) {
    T *found = (T *)(start + used);
    used += (count * sizeof(T) + 63) / 64 * 64;
    return found;
  }
};
static thread_local Room room;

// One head of one item: D numbers a step, padded with zeros to W, a multiple of 16, and to whole
// blocks of steps.
struct Steps {
  int64_t D, W, count, padded;
  Steps(int64_t D, int64_t count)
      : D(D), W((D + 15) / 16 * 16), count(count), padded((count + BLOCK - 1) / BLOCK * BLOCK) {}
  int64_t size() const { return padded * W; }
  // Of a block, those that there are, in sixteens.
  int64_t columns(int64_t block) const {
    return std::min(BLOCK, (count - block * BLOCK + 15) / 16 * 16);
  }

  void read(const bf16 *x, int64_t stride, const float *cos, const float *sin, bf16 *rows) const {
    for (int64_t s = 0; s < count; s++, x += stride, rows += W) {
      if (cos) {
        const float *c = cos + s * (D / 2), *n = sin + s * (D / 2);
        for (int64_t i = 0; i < D / 2; i += 16) {
          const __mmask16 in = first(D / 2 - i);
          const __m512 one = wide(_mm256_maskz_loadu_epi16(in, x + i));
          const __m512 two = wide(_mm256_maskz_loadu_epi16(in, x + D / 2 + i));
          const __m512 co = _mm512_maskz_loadu_ps(in, c + i), si = _mm512_maskz_loadu_ps(in, n + i);
          const __m512 turned = _mm512_fmsub_ps(one, co, _mm512_mul_ps(two, si));
          const __m512 other = _mm512_fmadd_ps(two, co, _mm512_mul_ps(one, si));
          put(rows + i, in, turned);
          put(rows + D / 2 + i, in, other);
        }
      } else {
        std::memcpy(rows, x, 2 * D);
      }
      std::memset(rows + D, 0, 2 * (W - D));
    }
    std::memset(rows, 0, 2 * W * (padded - count));
  }

  // Turned back where there are angles, times a factor.
  void write(const float *g, int64_t s, float factor, const float *cos, const float *sin,
             bf16 *to) const {
    const __m512 by = _mm512_set1_ps(factor);
    if (!cos) {
      for (int64_t i = 0; i < D; i += 16) {
        const __mmask16 in = first(D - i);
        const __m512 x = _mm512_mul_ps(by, _mm512_maskz_loadu_ps(in, g + i));
        put(to + i, in, x);
      }
      return;
    }
    for (int64_t i = 0; i < D / 2; i += 16) {
      const __mmask16 in = first(D / 2 - i);
      const __m512 one = _mm512_maskz_loadu_ps(in, g + i);
      const __m512 two = _mm512_maskz_loadu_ps(in, g + D / 2 + i);
      const __m512 co = _mm512_mul_ps(by, _mm512_maskz_loadu_ps(in, cos + s * (D / 2) + i));
      const __m512 si = _mm512_mul_ps(by, _mm512_maskz_loadu_ps(in, sin + s * (D / 2) + i));
      const __m512 turned = _mm512_fmadd_ps(one, co, _mm512_mul_ps(two, si));
      const __m512 other = _mm512_fmsub_ps(two, co, _mm512_mul_ps(one, si));
      put(to + i, in, turned);
      put(to + D / 2 + i, in, other);
    }
  }

  // Blocks of [W / 2][BLOCK]: the transposed steps, packed.
  void across(const bf16 *rows, uint32_t *to) const {
    for (int64_t s = 0; s < padded; s += 16) {
      uint32_t *at = to + s / BLOCK * (W / 2 * BLOCK) + s % BLOCK;
      turned(rows + s * W, [&](int64_t p, __m512i both) {
        _mm512_storeu_si512(at + p * BLOCK, both);
      });
    }
  }

  // Blocks of [BLOCK / 2][W]: the steps, packed.
  void along(const bf16 *rows, uint32_t *to) const {
    for (int64_t s = 0; s < padded; s += 2, rows += 2 * W, to += W)
      for (int64_t i = 0; i < W; i += 16)
        _mm512_storeu_si512(to + i, pairs_of(_mm256_loadu_si256((const __m256i *)(rows + i)),
                                             _mm256_loadu_si256((const __m256i *)(rows + W + i))));
  }

  // [W][padded]
  void transposed(const bf16 *rows, bf16 *to) const {
    for (int64_t s = 0; s < padded; s += 16)
      turned(rows + s * W, [&](int64_t p, __m512i both) {
        bf16 *at = to + 2 * p * padded + s;
        _mm256_storeu_si256((__m256i *)at, _mm512_cvtepi32_epi16(both));
        _mm256_storeu_si256((__m256i *)(at + padded),
                            _mm512_cvtepi32_epi16(_mm512_srli_epi32(both, 16)));
      });
  }

  // put(p, pairs of numbers 2 p and 2 p + 1 of 16 steps), for all pairs.
  template <class Put>
  void turned(const bf16 *rows, Put put) const {
    for (int64_t p = 0; p < W / 2; p += 16) {
      const __mmask16 in = first(W / 2 - p);
      __m512i r[16];
      for (int i = 0; i < 16; i++) r[i] = _mm512_maskz_loadu_epi32(in, rows + i * W + 2 * p);
      turn(r);
      for (int64_t i = 0; i < 16 && p + i < W / 2; i++) put(p + i, r[i]);
    }
  }

  // From [W][BLOCK], transposed: `row(step, numbers)` of each of the first `count` of a block.
  template <class Row>
  void each(const float *from, int64_t count, Row row) const {
    alignas(64) float steps[16][512];
    for (int64_t s = 0; s < count; s += 16) {
      for (int64_t i = 0; i < W; i += 16) {
        __m512i r[16];
        for (int n = 0; n < 16; n++) r[n] = _mm512_loadu_si512(from + (i + n) * BLOCK + s);
        turn(r);
        for (int n = 0; n < 16; n++) _mm512_store_si512(steps[n] + i, r[n]);
      }
      for (int64_t n = 0; n < 16 && s + n < count; n++) row(s + n, steps[n]);
    }
  }
};

// Which keys of an item may be seen.
struct Seen {
  const Attention &a;
  uint64_t *bits;  // of each block of keys
  Seen(const Attention &a, int64_t item, const Steps &keys) : a(a) {
    bits = room.take<uint64_t>(keys.padded / BLOCK);
    for (int64_t b = 0; b < keys.padded; b += BLOCK) {
      uint64_t found = 0;
      for (int64_t n = 0; n < BLOCK && b + n < a.keys; n++)
        found |= uint64_t(!a.mask || a.mask[item * a.keys + b + n]) << n;
      bits[b / BLOCK] = found;
    }
  }
  bool none(int64_t block) const { return !bits[block]; }
  // How many of the first a query sees at most.
  int64_t limit(int64_t query) const {
    return a.causal ? std::min(a.keys, std::max(query + 1, a.prefix)) : a.keys;
  }
  // Whether a query and those after it see all keys of a block.
  bool all(int64_t query, int64_t block) const {
    return bits[block] == ~uint64_t(0) && limit(query) >= (block + 1) * BLOCK;
  }
  // Of 16 keys from one on, those that a query sees.
  __mmask16 of(int64_t query, int64_t key) const {
    return bits[key / BLOCK] >> key % BLOCK & first(limit(query) - key);
  }
  // Of 16 queries from one on, those that see a key.
  __mmask16 by(int64_t query, int64_t key) const {
    if (!(bits[key / BLOCK] >> key % BLOCK & 1)) return 0;
    return a.causal && key >= a.prefix ? ~first(key - query) : 0xffff;
  }
};

// --------------------------------------------------------------------------------------- attention

static const float *angles(const Attention &a, const float *table, int64_t item) {
  return table ? table + item * a.angles_item : nullptr;
}

// All is transposed, keys by queries: so nothing is added up within a vector. Sums so far are of
// exp(score - highest so far) (Milakov & Gimelshein, 2018, arXiv:1805.02867).
static void forward(const Attention &a, int64_t item, int64_t head) {
  const Steps Q(a.width, a.queries), K(a.width, a.keys);
  const int64_t W = Q.W;
  room.begin(4 * Q.size() + 6 * K.size() + K.padded + 8 * BLOCK * (W + BLOCK) + (1 << 14));
  const float *cos = angles(a, a.cos, item), *sin = angles(a, a.sin, item);
  bf16 *keys = room.take<bf16>(K.size()), *rows = room.take<bf16>(std::max(Q.size(), K.size()));
  bf16 *values = room.take<bf16>(K.size());
  uint32_t *queries = room.take<uint32_t>(Q.size() / 2);
  const int64_t at = item * a.k_item + head / (a.heads / a.kv_heads) * a.width;
  K.read(a.k + at, a.k_step, cos, sin, keys);
  K.read(a.v + at, a.k_step, nullptr, nullptr, rows), K.transposed(rows, values);
  Q.read(a.q + item * a.q_item + head * a.width, a.q_step, cos, sin, rows), Q.across(rows, queries);
  const Seen seen(a, item, K);
  float *score = room.take<float>(BLOCK * BLOCK), *y = room.take<float>(BLOCK * W);
  uint32_t *share = room.take<uint32_t>(BLOCK * BLOCK / 2);
  alignas(64) float highest[BLOCK], sums[BLOCK];
  const __m512 scale = _mm512_set1_ps(LOG2E / std::sqrt(float(a.width)));  // powers of two
  const __m512 hidden = _mm512_set1_ps(HIDDEN), none = _mm512_setzero_ps();
  for (int64_t start = 0; start < a.queries; start += BLOCK) {
    const int64_t count = std::min(BLOCK, a.queries - start), columns = Q.columns(start / BLOCK);
    std::fill(highest, highest + BLOCK, HIDDEN), std::fill(sums, sums + BLOCK, 0.0f);
    std::memset(y, 0, 4 * BLOCK * W);
    const int64_t end = (seen.limit(start + count - 1) + BLOCK - 1) / BLOCK;
    for (int64_t b = 0; b < end; b++) {
      if (seen.none(b)) continue;
      const bool all = seen.all(start, b);
      const int64_t even = (std::min(BLOCK, a.keys - b * BLOCK) + 1) / 2 * 2;
      product(even, columns, W / 2, Rows{keys + b * BLOCK * W, W}, queries + start * W / 2, BLOCK,
              score, BLOCK, false);
      for (int64_t i = 0; i < columns; i += 16) {
        auto raw = [&](int64_t n) { return _mm512_load_ps(score + n * BLOCK + i); };
        auto in = [&](int64_t n) { return seen.by(start + i, b * BLOCK + n); };
        __m512 most[2] = {hidden, hidden};
        for (int64_t n = 0; n < even; n += 2)
          for (int o = 0; o < 2; o++)
            most[o] = all ? _mm512_max_ps(most[o], raw(n + o))
                          : _mm512_mask_max_ps(most[o], in(n + o), most[o], raw(n + o));
        const __m512 before = _mm512_load_ps(highest + i);
        const __m512 now =
            _mm512_max_ps(before, _mm512_mul_ps(scale, _mm512_max_ps(most[0], most[1])));
        __m512 sum[2] = {none, none};
        for (int64_t n = 0; n < even; n += 2) {
          __m512 e[2];
          for (int o = 0; o < 2; o++) {
            e[o] = power_of_two(_mm512_fmsub_ps(raw(n + o), scale, now));
            if (!all) e[o] = _mm512_maskz_mov_ps(in(n + o), e[o]);
            sum[o] = _mm512_add_ps(sum[o], e[o]);
          }
          _mm512_store_si512(share + n / 2 * BLOCK + i, packed(narrow(e[0], e[1])));
        }
        __m512 total = _mm512_load_ps(sums + i);
        if (_mm512_cmp_ps_mask(now, before, _CMP_NEQ_UQ)) {
          const __m512 by = power_of_two(_mm512_sub_ps(before, now));
          total = _mm512_mul_ps(total, by);
          for (int64_t n = 0; n < W; n++)
            put(y + n * BLOCK + i, _mm512_mul_ps(by, _mm512_load_ps(y + n * BLOCK + i)));
        }
        _mm512_store_ps(sums + i, _mm512_add_ps(total, _mm512_add_ps(sum[0], sum[1])));
        _mm512_store_ps(highest + i, now);
      }
      product(W, columns, even / 2, Rows{values + b * BLOCK, K.padded}, share, BLOCK, y, BLOCK, true);
    }
    float *total = a.total + (item * a.heads + head) * a.queries + start;
    bf16 *to = a.y + ((item * a.queries + start) * a.heads + head) * a.width;
    Q.each(y, count, [&](int64_t m, const float *numbers) {
      const bool nothing = sums[m] == 0;  // not so where it is NaN
      total[m] = nothing ? 0 : highest[m] / LOG2E + std::log(sums[m]);
      Q.write(numbers, 0, nothing ? 0 : 1 / sums[m], nullptr, nullptr, to + m * a.heads * a.width);
    });
  }
}

// Of all heads of queries of a head of keys. Gradients of keys and values are summed transposed,
// [W][BLOCK] of every block: so their products take probabilities and scores packed as they come,
// two queries at a time.
static void backward(const Attention &a, int64_t item, int64_t kv_head) {
  const Steps Q(a.width, a.queries), K(a.width, a.keys);
  const int64_t W = Q.W, D = a.width;
  room.begin(8 * Q.size() + 16 * K.size() + 8 * Q.padded + K.padded +
             4 * BLOCK * (W + 5 * BLOCK) + (1 << 14));
  const float *cos = angles(a, a.cos, item), *sin = angles(a, a.sin, item);
  bf16 *q = room.take<bf16>(Q.size()), *qt = room.take<bf16>(Q.size());
  bf16 *g = room.take<bf16>(Q.size()), *gt = room.take<bf16>(Q.size());
  bf16 *rows = room.take<bf16>(K.size());
  uint32_t *keys_across = room.take<uint32_t>(K.size() / 2);
  uint32_t *keys_along = room.take<uint32_t>(K.size() / 2);
  uint32_t *values_across = room.take<uint32_t>(K.size() / 2);
  float *grad_k = room.take<float>(K.size()), *grad_v = room.take<float>(K.size());
  float *total = room.take<float>(Q.padded), *delta = room.take<float>(Q.padded);
  const int64_t of_k = item * a.k_item + kv_head * D, y_step = a.heads * D;
  K.read(a.k + of_k, a.k_step, cos, sin, rows);
  K.across(rows, keys_across), K.along(rows, keys_along);
  K.read(a.v + of_k, a.k_step, nullptr, nullptr, rows), K.across(rows, values_across);
  const Seen seen(a, item, K);
  float *score = room.take<float>(BLOCK * BLOCK), *grad_p = room.take<float>(BLOCK * BLOCK);
  uint32_t *p_along = room.take<uint32_t>(BLOCK * BLOCK / 2);
  uint32_t *s_along = room.take<uint32_t>(BLOCK * BLOCK / 2);
  bf16 *s_rows = room.take<bf16>(BLOCK * BLOCK);
  float *grad_q = room.take<float>(BLOCK * W);
  std::memset(grad_k, 0, 4 * K.size()), std::memset(grad_v, 0, 4 * K.size());
  const float factor = 1 / std::sqrt(float(D));
  const __m512 scale = _mm512_set1_ps(factor * LOG2E);
  const int64_t group = a.heads / a.kv_heads;
  for (int64_t head = kv_head * group; head < (kv_head + 1) * group; head++) {
    const int64_t of_q = item * a.q_item + head * D, of_y = item * a.queries * y_step + head * D;
    Q.read(a.q + of_q, a.q_step, cos, sin, q), Q.transposed(q, qt);
    Q.read(a.y + of_y, y_step, nullptr, nullptr, gt);
    Q.read(a.grad_y + of_y, y_step, nullptr, nullptr, g);
    for (int64_t s = 0; s < Q.padded; s++) {
      __m512 sum = _mm512_setzero_ps();
      for (int64_t i = 0; i < W; i += 16)
        sum = _mm512_fmadd_ps(wide(_mm256_loadu_si256((__m256i *)(g + s * W + i))),
                              wide(_mm256_loadu_si256((__m256i *)(gt + s * W + i))), sum);
      delta[s] = _mm512_reduce_add_ps(sum);
      total[s] = s < a.queries ? LOG2E * a.total[(item * a.heads + head) * a.queries + s] : 1e30f;
    }
    Q.transposed(g, gt);
    for (int64_t start = 0; start < Q.padded; start += BLOCK) {
      const int64_t count = std::min(BLOCK, a.queries - start), even = (count + 1) / 2 * 2;
      std::memset(grad_q, 0, 4 * BLOCK * W);
      const int64_t end = (seen.limit(start + count - 1) + BLOCK - 1) / BLOCK;
      for (int64_t b = 0; b < end; b++) {
        if (seen.none(b)) continue;
        const int64_t at = b * W * BLOCK / 2, columns = K.columns(b);
        product(even, columns, W / 2, Rows{q + start * W, W}, keys_across + at, BLOCK, score, BLOCK,
                false);
        product(even, columns, W / 2, Rows{g + start * W, W}, values_across + at, BLOCK, grad_p,
                BLOCK, false);
        const bool all = seen.all(start, b);
        for (int64_t m = 0; m < even; m += 2) {
          const int64_t query = start + m;
          const __m512 totals[2] = {_mm512_set1_ps(total[query]), _mm512_set1_ps(total[query + 1])};
          const __m512 deltas[2] = {_mm512_set1_ps(delta[query]), _mm512_set1_ps(delta[query + 1])};
          for (int64_t i = 0; i < columns; i += 16) {
            __m512 p[2], s[2];
            for (int n = 0; n < 2; n++) {
              const __m512 raw = _mm512_load_ps(score + (m + n) * BLOCK + i);
              p[n] = power_of_two(_mm512_fmsub_ps(raw, scale, totals[n]));
              if (!all) p[n] = _mm512_maskz_mov_ps(seen.of(query + n, b * BLOCK + i), p[n]);
              const __m512 grad = _mm512_load_ps(grad_p + (m + n) * BLOCK + i);
              s[n] = _mm512_mul_ps(p[n], _mm512_sub_ps(grad, deltas[n]));
            }
            const __m512i both = narrow(s[0], s[1]);
            bf16 *rows_of_s = s_rows + m * BLOCK + i;
            _mm256_store_si256((__m256i *)rows_of_s, _mm512_castsi512_si256(both));
            _mm256_store_si256((__m256i *)(rows_of_s + BLOCK), _mm512_extracti64x4_epi64(both, 1));
            _mm512_store_si512(p_along + m / 2 * BLOCK + i, packed(narrow(p[0], p[1])));
            _mm512_store_si512(s_along + m / 2 * BLOCK + i, packed(both));
          }
        }
        product(even, W, columns / 2, Rows{s_rows, BLOCK}, keys_along + at, W, grad_q, W, true);
        product(W, columns, even / 2, Rows{gt + start, Q.padded}, p_along, BLOCK, grad_v + 2 * at,
                BLOCK, true);
        product(W, columns, even / 2, Rows{qt + start, Q.padded}, s_along, BLOCK, grad_k + 2 * at,
                BLOCK, true);
      }
      for (int64_t m = 0; m < count; m++)
        Q.write(grad_q + m * W, start + m, factor, cos, sin,
                a.grad_q + of_q + (start + m) * a.q_step);
    }
  }
  for (int64_t b = 0; b < K.padded; b += BLOCK) {
    const int64_t count = std::min(BLOCK, a.keys - b), at = of_k + b * a.k_step;
    K.each(grad_k + b * W, count, [&](int64_t s, const float *numbers) {
      K.write(numbers, b + s, factor, cos, sin, a.grad_k + at + s * a.k_step);
    });
    K.each(grad_v + b * W, count, [&](int64_t s, const float *numbers) {
      K.write(numbers, b + s, 1, nullptr, nullptr, a.grad_v + at + s * a.k_step);
    });
  }
}

extern "C" void attention(const Attention *call) {
  const Attention &a = *call;
  const int64_t heads = a.grad_y ? a.kv_heads : a.heads;
#pragma omp parallel for schedule(dynamic) num_threads(a.threads)
  for (int64_t i = 0; i < a.items * heads; i++) {
    if (a.grad_y)
      backward(a, i / heads, i % heads);
    else
      forward(a, i / heads, i % heads);
  }
}

// ----------------------------------------------------------------------------------------- linear

struct Linear {  // `_Linear` of native_training.py
  int64_t rows, inputs, outputs;
  const bf16 *x;       // (rows, inputs)
  const float *weight; // (outputs, inputs)
  const bf16 *grad_y;  // (rows, outputs)
  bf16 *y;             // (rows, outputs): x weight^T, or null
  void *grad_x;        // (rows, inputs): grad_y weight, or null
  int64_t grad_x_wide; // float32, else bf16
  float *grad_weight;  // (outputs, inputs): grad_y^T x, or null
  uint32_t *scratch;   // (outputs in sixes * rows in pairs) for the gradient of the weight
  int64_t threads;
  int64_t x_step, grad_x_step;     // strides of a row
  int64_t add_to_x, add_to_weight; // whether gradients, in float32, are added to what is there
};

// Panels of at most 64 columns of a right factor, in bf16: [pair][column].
static void outputs_of(const Linear &l, int64_t start, int64_t columns, uint32_t *to) {
  for (int64_t n = 0; n < columns; n += 16)
    for (int64_t k = 0; k < l.inputs; k += 32) {
      __m512i r[16];
      for (int i = 0; i < 16; i++) {
        const float *w = l.weight + (start + n + i) * l.inputs + k;
        r[i] = (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(w + 16), _mm512_loadu_ps(w));
      }
      turn(r);
      for (int i = 0; i < 16; i++) _mm512_store_si512(to + (k / 2 + i) * BLOCK + n, r[i]);
    }
}

static void inputs_of(const Linear &l, int64_t start, int64_t columns, uint32_t *to) {
  for (int64_t n = 0; n < l.outputs; n += 2)
    for (int64_t k = 0; k < columns; k += 16) {
      const float *w = l.weight + n * l.inputs + start + k;
      const __m256i one = narrow(_mm512_loadu_ps(w)), two = narrow(_mm512_loadu_ps(w + l.inputs));
      _mm512_store_si512(to + n / 2 * BLOCK + k, pairs_of(one, two));
    }
}

static void rows_of(const bf16 *x, int64_t width, int64_t rows, int64_t start, int64_t columns,
                    uint32_t *to, int64_t stride) {
  for (int64_t m = 0; m < rows; m += 2)
    for (int64_t k = 0; k < columns; k += 16) {
      const bf16 *at = x + m * width + start + k;
      const __m256i one = _mm256_loadu_si256((const __m256i *)at);
      const __m256i two = m + 1 < rows ? _mm256_loadu_si256((const __m256i *)(at + width))
                                       : _mm256_setzero_si256();
      _mm512_storeu_si512(to + m / 2 * stride + k, pairs_of(one, two));
    }
}

// The transposed gradient of y in tiles, into the scratch. Some tiles at a time: more would be
// written to at places that drive each other out of the cache.
static void tiles_of(const Linear &l, int64_t pairs) {
  constexpr int64_t SOME = 8, PART = 128, WIDTH = SOME * TALL;
  const int64_t tiles = (l.outputs + TALL - 1) / TALL, parts = (pairs + PART - 1) / PART;
#pragma omp for schedule(static)
  for (int64_t i = 0; i < (tiles + SOME - 1) / SOME * parts; i++) {
    const int64_t start = i / parts * WIDTH, columns = std::min(WIDTH, l.outputs - start);
    const int64_t first_tile = i / parts * SOME, end = std::min(tiles, first_tile + SOME);
    alignas(64) uint32_t row[WIDTH] = {};
    for (int64_t p = i % parts * PART; p < std::min(pairs, (i % parts + 1) * PART); p++) {
      const int64_t rows = std::min<int64_t>(2, l.rows - 2 * p);
      rows_of(l.grad_y + 2 * p * l.outputs, l.outputs, rows, start, columns, row, 0);
      for (int64_t t = first_tile; t < end; t++)
        std::memcpy(l.scratch + (t * pairs + p) * TALL, row + (t - first_tile) * TALL, 4 * TALL);
    }
  }
}

// Every thread packs the panels that it multiplies with. Where they are fewer than threads, rows of
// the left factor are shared out as well.
template <class Pack, class Multiply>
static void panels(int64_t width, int64_t rows, int64_t pairs, int64_t threads, Pack pack,
                   Multiply multiply) {
  const int64_t count = (width + BLOCK - 1) / BLOCK, tiles = (rows + TALL - 1) / TALL;
  const int64_t wanted = threads == 1 ? 1 : (4 * threads + count - 1) / count;
  const int64_t parts = std::max<int64_t>(1, std::min(wanted, tiles / 16));
#pragma omp for schedule(dynamic)
  for (int64_t i = 0; i < count * parts; i++) {
    const int64_t start = i / parts * BLOCK, columns = std::min(BLOCK, width - start);
    const int64_t part = i % parts;
    const int64_t from = tiles * part / parts * TALL;
    const int64_t to = std::min(rows, tiles * (part + 1) / parts * TALL);
    room.begin(4 * pairs * BLOCK);
    uint32_t *panel = room.take<uint32_t>(pairs * BLOCK);
    pack(start, columns, panel);
    multiply(start, columns, panel, from, to - from);
  }
}

// The others are called by all threads of a parallel region.
static void multiply(const Linear &l) {
  panels(
      l.outputs, l.rows, l.inputs / 2, l.threads,
      [&](int64_t start, int64_t n, uint32_t *panel) { outputs_of(l, start, n, panel); },
      [&](int64_t start, int64_t n, const uint32_t *panel, int64_t from, int64_t rows) {
        product(rows, n, l.inputs / 2, Rows{l.x + from * l.x_step, l.x_step}, panel, BLOCK,
                l.y + from * l.outputs + start, l.outputs, false);
      });
}

static void gradient_of_x(const Linear &l) {
  panels(
      l.inputs, l.rows, l.outputs / 2, l.threads,
      [&](int64_t start, int64_t n, uint32_t *panel) { inputs_of(l, start, n, panel); },
      [&](int64_t start, int64_t n, const uint32_t *panel, int64_t from, int64_t rows) {
        const Rows g{l.grad_y + from * l.outputs, l.outputs};
        const int64_t at = from * l.grad_x_step + start;
        if (l.grad_x_wide)
          product(rows, n, l.outputs / 2, g, panel, BLOCK, (float *)l.grad_x + at, l.grad_x_step,
                  l.add_to_x);
        else
          product(rows, n, l.outputs / 2, g, panel, BLOCK, (bf16 *)l.grad_x + at, l.grad_x_step,
                  false);
      });
}

static void gradient_of_weight(const Linear &l) {
  const int64_t pairs = (l.rows + 1) / 2;
  tiles_of(l, pairs);
  panels(
      l.inputs, l.outputs, pairs, l.threads,
      [&](int64_t start, int64_t n, uint32_t *panel) {
        rows_of(l.x, l.x_step, l.rows, start, n, panel, BLOCK);
      },
      [&](int64_t start, int64_t n, const uint32_t *panel, int64_t from, int64_t rows) {
        constexpr int64_t PART = 2048;  // pairs whose panel the second cache holds
        for (int64_t p = 0; p < pairs; p += PART) {
          const int64_t some = std::min(PART, pairs - p);
          product(rows, n, some, Tiles{l.scratch + from * pairs + p * TALL, pairs},
                  panel + p * BLOCK, BLOCK, l.grad_weight + from * l.inputs + start, l.inputs,
                  l.add_to_weight || p > 0);
        }
      });
}

extern "C" void linear(const Linear *call) {
#pragma omp parallel num_threads(call->threads)
  {
    if (call->y) multiply(*call);
    if (call->grad_x) gradient_of_x(*call);
    if (call->grad_weight) gradient_of_weight(*call);
  }
}

// -------------------------------------------------------------------------------------- classifiers

struct Classifiers {  // `_Classifiers` of native_training.py
  int64_t rows, levels, codes, width;
  const bf16 *x;           // (rows, width), or (rows, levels, width): strides of a row and a level
  int64_t x_step, x_level;
  const float *weight;     // (levels, codes, width)
  const int64_t *targets;  // (rows, levels); -1: a cell that does not count
  const float *factors;    // (rows, levels) of the cells in the loss
  float smoothing;
  // (4, rows, levels): -log p of the target; whether it is above all others; the highest
  // probability; the mean logit less the log of the total
  float *found;
  float *grad_x;       // laid out as x, or null: no gradients
  float *grad_weight;  // as the weight
  bf16 *grad_y;        // (some rows, codes)
  uint32_t *scratch;   // (codes in sixes * some rows in pairs), of `Linear`
  uint32_t *packed;    // (codes in blocks, width / 2, BLOCK)
  int64_t some_rows;   // that are worked on together
  int64_t add;         // whether to what the gradient of the weight is already
  int64_t threads;
};

// Of a row of logits, which become exp(logit - highest).
static void judge(float *logits, int64_t codes, int64_t target, float *found, int64_t of_found) {
  const float own = logits[target];
  logits[target] = -INFINITY;
  __m512 most = _mm512_set1_ps(-INFINITY), all = _mm512_setzero_ps();
  for (int64_t i = 0; i < codes; i += 16) {
    // its order keeps what is no number
    most = _mm512_max_ps(most, _mm512_loadu_ps(logits + i));
  }
  const float others = _mm512_reduce_max_ps(most);
  logits[target] = own;
  const float top = own > others ? own : others;
  const __m512 highest = _mm512_set1_ps(top);
  __m512 sum = _mm512_setzero_ps();
  for (int64_t i = 0; i < codes; i += 16) {
    const __m512 less = _mm512_sub_ps(_mm512_loadu_ps(logits + i), highest), e = exp_(less);
    all = _mm512_add_ps(all, less), sum = _mm512_add_ps(sum, e);
    _mm512_storeu_ps(logits + i, e);
  }
  const float total = _mm512_reduce_add_ps(sum), log_total = std::log(total);
  found[0] = log_total + top - own;
  found[of_found] = own > others;
  found[2 * of_found] = 1 / total;
  found[3 * of_found] = _mm512_reduce_add_ps(all) / codes - log_total;
}

// The gradient by a row of logits, of what `judge` left.
static void gradient_of_logits(const float *shares, int64_t codes, int64_t target, float factor,
                               float highest, float smoothing, bf16 *to) {
  const __m512 by = _mm512_set1_ps(factor * highest);
  const __m512 even = _mm512_set1_ps(factor * smoothing / codes);
  for (int64_t i = 0; i < codes; i += 16)
    put(to + i, _mm512_fmsub_ps(by, _mm512_loadu_ps(shares + i), even));
  const float own = factor * (highest * shares[target] - smoothing / codes - (1 - smoothing));
  to[target] = (uint16_t)_mm_extract_epi16((__m128i)_mm_cvtneps_pbh(_mm_set_ss(own)), 0);
}

// Level by level, so that its gradients are still in a cache when the products need them.
extern "C" void classify(const Classifiers *call) {
  const Classifiers &c = *call;
  const int64_t blocks = (c.codes + BLOCK - 1) / BLOCK, of_found = c.rows * c.levels;
  const int64_t HEIGHT = 8 * TALL;
#pragma omp parallel num_threads(c.threads)
  for (int64_t begin = 0; begin < c.rows; begin += c.some_rows)
    for (int64_t k = 0; k < c.levels; k++) {
      Linear l{std::min(c.some_rows, c.rows - begin), c.width, c.codes};
      l.x = c.x + begin * c.x_step + k * c.x_level, l.x_step = c.x_step;
      l.weight = c.weight + k * c.codes * c.width, l.threads = c.threads;
#pragma omp for schedule(static)
      for (int64_t i = 0; i < blocks; i++)
        outputs_of(l, i * BLOCK, std::min(BLOCK, c.codes - i * BLOCK),
                   c.packed + i * BLOCK * c.width / 2);
#pragma omp for schedule(dynamic)
      for (int64_t m = 0; m < l.rows; m += HEIGHT) {
        const int64_t rows = std::min(HEIGHT, l.rows - m);
        room.begin(4 * HEIGHT * blocks * BLOCK);
        float *logits = room.take<float>(HEIGHT * c.codes);
        for (int64_t i = 0; i < blocks; i++)
          product(rows, std::min(BLOCK, c.codes - i * BLOCK), c.width / 2,
                  Rows{l.x + m * l.x_step, l.x_step}, c.packed + i * BLOCK * c.width / 2, BLOCK,
                  logits + i * BLOCK, c.codes, false);
        for (int64_t n = 0; n < rows; n++) {
          const int64_t cell = (begin + m + n) * c.levels + k, target = c.targets[cell];
          float *row = logits + n * c.codes, *found = c.found + cell;
          if (target < 0) {
            for (int i = 0; i < 4; i++) found[i * of_found] = 0;
            if (c.grad_x) std::memset(c.grad_y + (m + n) * c.codes, 0, 2 * c.codes);
            continue;
          }
          judge(row, c.codes, target, found, of_found);
          if (c.grad_x)
            gradient_of_logits(row, c.codes, target, c.factors[cell], found[2 * of_found],
                               c.smoothing, c.grad_y + (m + n) * c.codes);
        }
      }
      if (!c.grad_x) continue;
      l.grad_y = c.grad_y, l.scratch = c.scratch, l.grad_x_wide = true;
      l.grad_x = c.grad_x + begin * c.x_step + k * c.x_level, l.grad_x_step = c.x_step;
      l.grad_weight = c.grad_weight + k * c.codes * c.width;
      l.add_to_x = !c.x_level && k > 0, l.add_to_weight = c.add || begin > 0;
      gradient_of_x(l);
      gradient_of_weight(l);
    }
}

// ------------------------------------------------------------------------------------------- GELU

// Normal distribution: half the error function, of Abramowitz and Stegun, 7.1.26, within 1e-7; and
// exp(-x^2 / 2).
static inline __m512 normal(__m512 x, __m512 *bell) {
  const __m512 one = _mm512_set1_ps(1), z = _mm512_mul_ps(_mm512_abs_ps(x),
                                                         _mm512_set1_ps(0.70710678f));
  const __m512 of = _mm512_fmadd_ps(_mm512_set1_ps(0.3275911f), z, one);
  __m512 t = _mm512_rcp14_ps(of);  // one step of Newton's: as good as a division, and faster
  t = _mm512_mul_ps(t, _mm512_fnmadd_ps(of, t, _mm512_set1_ps(2)));
  __m512 p = _mm512_set1_ps(1.061405429f);
  p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(-1.453152027f));
  p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(1.421413741f));
  p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(-0.284496736f));
  p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(0.254829592f));
  const __m512 power = _mm512_mul_ps(_mm512_mul_ps(x, x), _mm512_set1_ps(-0.5f * LOG2E));
  *bell = power_of_two(_mm512_max_ps(_mm512_set1_ps(-150), power));  // NaN stays what it is
  const __m512 tail = _mm512_mul_ps(_mm512_mul_ps(_mm512_set1_ps(0.5f), *bell),
                                    _mm512_mul_ps(p, t));
  const __mmask16 below = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ);
  return _mm512_mask_mov_ps(_mm512_sub_ps(one, tail), below, tail);
}

// y = x normal(x); with grad_y instead y = grad_y times the derivative.
extern "C" void gelu(int64_t count, const bf16 *x, const bf16 *grad_y, bf16 *y, int64_t threads) {
  const __m512 density = _mm512_set1_ps(0.39894228f);
#pragma omp parallel for num_threads(threads)
  for (int64_t i = 0; i < count; i += 16) {
    const __mmask16 in = first(count - i);
    const __m512 at = wide(_mm256_maskz_loadu_epi16(in, x + i));
    __m512 bell, made = normal(at, &bell);
    if (grad_y) {
      made = _mm512_fmadd_ps(_mm512_mul_ps(at, density), bell, made);
      made = _mm512_mul_ps(made, wide(_mm256_maskz_loadu_epi16(in, grad_y + i)));
    } else {
      made = _mm512_mul_ps(made, at);
    }
    put(y + i, in, made);
  }
}

// ------------------------------------------------------------------------------- step of an optimizer

struct Step {  // `_Step` of native_training.py
  int64_t tensors;
  const int64_t *sizes;
  float **weights, **grads, **means, **squares, **averages;  // averages: or null
  const float *sizes_of_step, *roots, *kept;  // of each: lr / correction, sqrt(correction), 1 - decay
  float factor, beta1, beta2, eps, share;     // share: of the new weights in the averages
  int64_t threads;
};

// work(number of a part, tensor, start, count) for all parts of all tensors.
template <class Work>
static void parts_of(int64_t tensors, const int64_t *sizes, int64_t threads, Work work) {
  constexpr int64_t PART = 16384;
  std::vector<int64_t> starts{0};
  for (int64_t t = 0; t < tensors; t++) starts.push_back(starts[t] + (sizes[t] + PART - 1) / PART);
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t i = 0; i < starts[tensors]; i++) {
    const int64_t t = std::upper_bound(starts.begin(), starts.end(), i) - starts.begin() - 1;
    const int64_t start = (i - starts[t]) * PART;
    work(i, t, start, std::min(PART, sizes[t] - start));
  }
}

// AdamW (Loshchilov & Hutter, 2019, arXiv:1711.05101), of gradients times a factor, and a moving
// average of the weights, in one pass.
extern "C" void adamw(const Step *call) {
  const Step &c = *call;
  const __m512 factor = _mm512_set1_ps(c.factor), eps = _mm512_set1_ps(c.eps);
  const __m512 new1 = _mm512_set1_ps(1 - c.beta1), old2 = _mm512_set1_ps(c.beta2);
  const __m512 new2 = _mm512_set1_ps(1 - c.beta2), old = _mm512_set1_ps(1 - c.share);
  parts_of(c.tensors, c.sizes, c.threads, [&](int64_t, int64_t t, int64_t start, int64_t count) {
    const __m512 by = _mm512_set1_ps(c.sizes_of_step[t]), kept = _mm512_set1_ps(c.kept[t]);
    const __m512 root = _mm512_set1_ps(1 / c.roots[t]);
    float *weight = c.weights[t] + start, *grad = c.grads[t] + start, *mean = c.means[t] + start;
    float *square = c.squares[t] + start, *average = c.averages ? c.averages[t] + start : nullptr;
    auto some = [&](int64_t i, __mmask16 in) {
      const __m512 g = _mm512_mul_ps(factor, _mm512_maskz_loadu_ps(in, grad + i));
      __m512 w = _mm512_mul_ps(kept, _mm512_maskz_loadu_ps(in, weight + i));
      __m512 m = _mm512_maskz_loadu_ps(in, mean + i), v = _mm512_maskz_loadu_ps(in, square + i);
      m = _mm512_fmadd_ps(new1, _mm512_sub_ps(g, m), m);
      v = _mm512_fmadd_ps(old2, v, _mm512_mul_ps(new2, _mm512_mul_ps(g, g)));
      const __m512 under = _mm512_fmadd_ps(_mm512_sqrt_ps(v), root, eps);
      w = _mm512_fnmadd_ps(by, _mm512_div_ps(m, under), w);
      _mm512_mask_storeu_ps(weight + i, in, w);
      _mm512_mask_storeu_ps(mean + i, in, m), _mm512_mask_storeu_ps(square + i, in, v);
      if (!average) return;
      const __m512 before = _mm512_maskz_loadu_ps(in, average + i);
      _mm512_mask_storeu_ps(average + i, in, _mm512_fnmadd_ps(old, _mm512_sub_ps(w, before), w));
    };
    int64_t i = 0;
    for (; i + 16 <= count; i += 16) some(i, 0xffff);  // the mask goes
    if (i < count) some(i, first(count - i));
  });
}

// Of all numbers, in float64; the same on any number of threads.
extern "C" double sum_of_squares(int64_t tensors, const int64_t *sizes, float **x, int64_t threads) {
  int64_t most = tensors;
  for (int64_t t = 0; t < tensors; t++) most += sizes[t] / 16384;
  std::vector<double> sums(most);
  parts_of(tensors, sizes, threads, [&](int64_t part, int64_t t, int64_t start, int64_t count) {
    __m512d low = _mm512_setzero_pd(), high = low;
    for (int64_t i = start; i < start + count; i += 16) {
      const __m512 v = _mm512_maskz_loadu_ps(first(start + count - i), x[t] + i);
      const __m512d one = _mm512_cvtps_pd(_mm512_castps512_ps256(v));
      const __m512d two = _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1));
      low = _mm512_fmadd_pd(one, one, low), high = _mm512_fmadd_pd(two, two, high);
    }
    sums[part] = _mm512_reduce_add_pd(_mm512_add_pd(low, high));
  });
  double sum = 0;
  for (double of_part : sums) sum += of_part;
  return sum;
}
