#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#define LLAMAHOME_ISA "avx2"
#define LLAMAHOME_ACCUMULATORS 6  // vectors of 16 that fit the registers

namespace llamahome {
namespace {

// 16 lanes in two registers; GCC would keep a single vector of 64 bytes in memory.
struct vf {
  __m256 low, high;
};
struct vi {
  __m256i low, high;
};

inline vf operator+(vf a, vf b) { return {a.low + b.low, a.high + b.high}; }
inline vf operator-(vf a, vf b) { return {a.low - b.low, a.high - b.high}; }
inline vf operator*(vf a, vf b) { return {a.low * b.low, a.high * b.high}; }
inline vf operator/(vf a, vf b) { return {a.low / b.low, a.high / b.high}; }
inline vi operator+(vi a, vi b) {
  return {_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)};
}
inline vf splat(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline vi splat_int(int x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
inline vf operator+(vf a, float b) { return a + splat(b); }
inline vf operator-(vf a, float b) { return a - splat(b); }
inline vf operator*(vf a, float b) { return a * splat(b); }
inline vf& operator+=(vf& a, vf b) { return a = a + b; }
inline vf& operator*=(vf& a, vf b) { return a = a * b; }
inline vf load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, vf v) {
  _mm256_storeu_ps(p, v.low);
  _mm256_storeu_ps(p + 8, v.high);
}
// The larger of a and b; b if either is NaN.
inline vf larger(vf a, vf b) {
  return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)};
}
inline vf absolute(vf x) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, x.low), _mm256_andnot_ps(sign, x.high)};
}
inline vf if_negative(vf x, vf then, vf otherwise) {
  return {_mm256_blendv_ps(otherwise.low, then.low, x.low),
          _mm256_blendv_ps(otherwise.high, then.high, x.high)};
}
inline vf to_float(vi x) { return {_mm256_cvtepi32_ps(x.low), _mm256_cvtepi32_ps(x.high)}; }
inline vi to_int(vf x) { return {_mm256_cvttps_epi32(x.low), _mm256_cvttps_epi32(x.high)}; }
inline vi round_to_int(vf x) { return {_mm256_cvtps_epi32(x.low), _mm256_cvtps_epi32(x.high)}; }
inline vf power_of_two(vi n) {
  const vi biased = n + splat_int(127);
  return {_mm256_castsi256_ps(_mm256_slli_epi32(biased.low, 23)),
          _mm256_castsi256_ps(_mm256_slli_epi32(biased.high, 23))};
}
inline __m128i load_16_bytes(const void* p) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
}
// bfloat16 is the upper half of a float.
inline vf load_bfloat(const uint16_t* p) {
  const __m256i low = _mm256_cvtepu16_epi32(load_16_bytes(p));
  const __m256i high = _mm256_cvtepu16_epi32(load_16_bytes(p + 8));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(low, 16)),
          _mm256_castsi256_ps(_mm256_slli_epi32(high, 16))};
}
inline vf load_half(const uint16_t* p) {
  return {_mm256_cvtph_ps(load_16_bytes(p)), _mm256_cvtph_ps(load_16_bytes(p + 8))};
}
inline void store_half(uint16_t* p, vf v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm256_cvtps_ph(v.low, _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8),
                   _mm256_cvtps_ph(v.high, _MM_FROUND_TO_NEAREST_INT));
}
inline vf load_int8(const int8_t* p) {
  const __m128i bytes = load_16_bytes(p);
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
          _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8)))};
}
inline void store_int8(int8_t* p, vi v) {
  alignas(32) int32_t lanes[kLanes];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), v.low);
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes + 8), v.high);
  for (int i = 0; i < kLanes; ++i) p[i] = static_cast<int8_t>(lanes[i]);
}
// acc[n] += sum over i < 4 of w[4 n + i] * a[i]. A sum of two products of u8 and s8 may overflow
// the int16 of maddubs and one product cannot, so even and odd bytes are multiplied separately.
inline __m256i dot4_half(__m256i acc, const uint8_t* w, __m256i activations) {
  const __m256i even = _mm256_set1_epi16(0x00ff), ones = _mm256_set1_epi16(1);
  const __m256i weights = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w));
  const __m256i low = _mm256_maddubs_epi16(_mm256_and_si256(weights, even), activations);
  const __m256i high = _mm256_maddubs_epi16(_mm256_andnot_si256(even, weights), activations);
  acc = _mm256_add_epi32(acc, _mm256_madd_epi16(low, ones));
  return _mm256_add_epi32(acc, _mm256_madd_epi16(high, ones));
}
inline vi dot4(vi acc, const uint8_t* w, const int8_t* a) {
  int32_t four;
  __builtin_memcpy(&four, a, 4);
  const __m256i activations = _mm256_set1_epi32(four);
  return {dot4_half(acc.low, w, activations), dot4_half(acc.high, w + 32, activations)};
}

#include "kernels.inc"

}  // namespace

const Kernels* avx2_kernels() {
  const bool here = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  return here ? &kTable : nullptr;
}

}  // namespace llamahome
#pragma GCC pop_options
#else
const llamahome::Kernels* llamahome::avx2_kernels() { return nullptr; }
#endif
