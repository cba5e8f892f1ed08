#include <bit>

#include "kernels.h"

#define LLAMAHOME_ISA "portable"
#define LLAMAHOME_ACCUMULATORS 4  // vectors of 16 that fit the registers

namespace llamahome {
namespace {

#include "vectors.inc"

// IEEE half precision in software: a factor of 2^112 corrects the bias of the exponent.
inline float half_to_float(uint16_t h) {
  uint32_t bits = static_cast<uint32_t>(h & 0x7fff) << 13;
  if ((h & 0x7c00) == 0x7c00) {
    bits |= 0x7f800000;
  } else {
    bits = std::bit_cast<uint32_t>(std::bit_cast<float>(bits) * 0x1p112f);
  }
  return std::bit_cast<float>(bits | static_cast<uint32_t>(h & 0x8000) << 16);
}

inline uint16_t float_to_half(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  const uint32_t size = bits & 0x7fffffff;
  if (size > 0x7f800000) return sign | 0x7e00;
  if (size >= 0x477ff000) return sign | 0x7c00;  // rounds to infinity
  if (size < 0x38800000) {  // below the smallest normal half: adding 0.5 rounds at 2^-24
    const uint32_t rounded = std::bit_cast<uint32_t>(std::bit_cast<float>(size) + 0.5f);
    return sign | static_cast<uint16_t>(rounded - 0x3f000000);
  }
  const uint32_t rounded = size + 0xfff + (size >> 13 & 1);
  return sign | static_cast<uint16_t>((rounded - 0x38000000) >> 13);
}

inline vf load_half(const uint16_t* p) {
  vf v;
  for (int i = 0; i < kLanes; ++i) v[i] = half_to_float(p[i]);
  return v;
}
inline void store_half(uint16_t* p, vf v) {
  for (int i = 0; i < kLanes; ++i) p[i] = float_to_half(v[i]);
}
inline vf load_int8(const int8_t* p) {
  vf v;
  for (int i = 0; i < kLanes; ++i) v[i] = p[i];
  return v;
}
// acc[n] += sum over i < 4 of w[4 n + i] * a[i].
inline vi dot4(vi acc, const uint8_t* w, const int8_t* a) {
  for (int n = 0; n < kLanes; ++n) {
    for (int i = 0; i < 4; ++i) acc[n] += w[4 * n + i] * a[i];
  }
  return acc;
}

#include "kernels.inc"

}  // namespace

const Kernels* portable_kernels() { return &kTable; }

}  // namespace llamahome
