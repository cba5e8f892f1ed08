#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#define LLAMAHOME_ISA "avx2"

namespace llamahome {
namespace {

typedef float vf __attribute__((vector_size(64)));
typedef int32_t vi __attribute__((vector_size(64)));
union Halves {
  vf whole;
  vi whole_int;
  __m256 half[2];
  __m256i half_int[2];
};

inline vf load_half(const uint16_t* p) {
  Halves v;
  for (int i = 0; i < 2; ++i) {
    v.half[i] = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8 * i)));
  }
  return v.whole;
}
inline void store_half(uint16_t* p, vf value) {
  Halves v;
  v.whole = value;
  for (int i = 0; i < 2; ++i) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8 * i),
                     _mm256_cvtps_ph(v.half[i], _MM_FROUND_TO_NEAREST_INT));
  }
}
inline vf load_int8(const int8_t* p) {
  Halves v;
  for (int i = 0; i < 2; ++i) {
    v.half[i] = _mm256_cvtepi32_ps(
        _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + 8 * i))));
  }
  return v.whole;
}
// acc[n] += sum over i < 4 of w[4 n + i] * a[i]. Two products of u8 and s8 may overflow the int16
// of maddubs, one cannot: so even and odd bytes go separately.
inline vi dot4(vi acc, const uint8_t* w, const int8_t* a) {
  int32_t four;
  __builtin_memcpy(&four, a, 4);
  const __m256i activations = _mm256_set1_epi32(four);
  const __m256i even = _mm256_set1_epi16(0x00ff);
  const __m256i ones = _mm256_set1_epi16(1);
  Halves v;
  v.whole_int = acc;
  for (int i = 0; i < 2; ++i) {
    const __m256i weights = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w + 32 * i));
    const __m256i low = _mm256_maddubs_epi16(_mm256_and_si256(weights, even), activations);
    const __m256i high = _mm256_maddubs_epi16(_mm256_andnot_si256(even, weights), activations);
    v.half_int[i] = _mm256_add_epi32(
        v.half_int[i],
        _mm256_add_epi32(_mm256_madd_epi16(low, ones), _mm256_madd_epi16(high, ones)));
  }
  return v.whole_int;
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
