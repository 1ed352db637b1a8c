/* Floating point and vectors: the units of the processor beside the integer one. */
#include <immintrin.h>
#include <math.h>

#include "bench.h"

#define AVX2 __attribute__((target("avx2,fma")))

/* The bits of a number, which must be the same everywhere. */
static uint64_t bits(double value)
{
	union {
		double value;
		uint64_t bits;
	} u = { value };

	return u.bits;
}

static void need_avx2(void)
{
	if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma"))
		lacks("AVX2");
}

/* Products of vectors. */

#define LENGTH 4096
#define DOTS 400

static float left[LENGTH] __attribute__((aligned(32))), right[LENGTH] __attribute__((aligned(32)));

static void dot_setup(void)
{
	uint64_t state = 77;

	for (size_t i = 0; i < LENGTH; i++) {
		left[i] = (float)(next_random(&state) & 0xff) / 64;
		right[i] = (float)(next_random(&state) & 0xff) / 256;
	}
}

static uint64_t dot_sse2_unit(void)
{
	float lanes[4];
	double sum = 0;

	for (int pass = 0; pass < DOTS; pass++) {
		__m128 total = _mm_set1_ps((float)pass);

		for (size_t i = 0; i < LENGTH; i += 4)
			total = _mm_add_ps(total, _mm_mul_ps(_mm_load_ps(left + i), _mm_load_ps(right + i)));
		_mm_storeu_ps(lanes, total);
		sum += lanes[0] + lanes[1] + lanes[2] + lanes[3];
	}
	return bits(sum);
}

static void dot_avx2_setup(void)
{
	need_avx2();
	dot_setup();
}

static AVX2 uint64_t dot_avx2_unit(void)
{
	float lanes[8];
	double sum = 0;

	for (int pass = 0; pass < DOTS; pass++) {
		__m256 total = _mm256_set1_ps((float)pass);

		for (size_t i = 0; i < LENGTH; i += 8)
			total = _mm256_fmadd_ps(_mm256_load_ps(left + i), _mm256_load_ps(right + i), total);
		_mm256_storeu_ps(lanes, total);
		for (int i = 0; i < 8; i++)
			sum += lanes[i];
	}
	return bits(sum);
}

/* Products of matrices. */

#define SIDE 96

static double a[SIDE][SIDE] __attribute__((aligned(32)));
static double b[SIDE][SIDE] __attribute__((aligned(32)));
static double c[SIDE][SIDE] __attribute__((aligned(32)));

static void matrix_setup(void)
{
	for (int i = 0; i < SIDE; i++)
		for (int j = 0; j < SIDE; j++) {
			a[i][j] = (i * 7 + j * 3) % 13 - 6;
			b[i][j] = (i * 5 + j * 11) % 17 / 4.0;
		}
}

static uint64_t matrix_sum(void)
{
	uint64_t sum = 0;

	for (int i = 0; i < SIDE; i++)
		sum = mix(sum, bits(c[i][(i * 31) % SIDE]));
	return sum;
}

static uint64_t matrix_sse2_unit(void)
{
	for (int i = 0; i < SIDE; i++)
		for (int j = 0; j < SIDE; j += 2) {
			__m128d total = _mm_setzero_pd();

			for (int k = 0; k < SIDE; k++)
				total = _mm_add_pd(total, _mm_mul_pd(_mm_set1_pd(a[i][k]), _mm_load_pd(&b[k][j])));
			_mm_store_pd(&c[i][j], total);
		}
	return matrix_sum();
}

static void matrix_avx2_setup(void)
{
	need_avx2();
	matrix_setup();
}

static AVX2 uint64_t matrix_avx2_unit(void)
{
	for (int i = 0; i < SIDE; i++)
		for (int j = 0; j < SIDE; j += 4) {
			__m256d total = _mm256_setzero_pd();

			for (int k = 0; k < SIDE; k++)
				total = _mm256_fmadd_pd(_mm256_broadcast_sd(&a[i][k]), _mm256_load_pd(&b[k][j]), total);
			_mm256_store_pd(&c[i][j], total);
		}
	return matrix_sum();
}

/* Bodies that attract each other: scalar SSE2, with square roots and divisions. */

#define BODIES 5

struct body {
	double at[3], speed[3], mass;
};

static void attract(struct body *x, struct body *y)
{
	double d[3], square = 0.01, pull;

	for (int i = 0; i < 3; i++) {
		d[i] = x->at[i] - y->at[i];
		square += d[i] * d[i];
	}
	pull = 0.001 / (square * sqrt(square));
	for (int i = 0; i < 3; i++) {
		x->speed[i] -= d[i] * y->mass * pull;
		y->speed[i] += d[i] * x->mass * pull;
	}
}

static uint64_t nbody_unit(void)
{
	struct body bodies[BODIES];
	uint64_t sum = 0;

	for (int i = 0; i < BODIES; i++)
		bodies[i] = (struct body){ { i * 1.5, i * i * 0.25, 3.0 - i }, { 0.1 * i, 0.0, -0.05 * i }, 1.0 + i };
	for (int step = 0; step < 3000; step++) {
		for (int i = 0; i < BODIES; i++)
			for (int j = i + 1; j < BODIES; j++)
				attract(&bodies[i], &bodies[j]);
		for (int i = 0; i < BODIES; i++)
			for (int k = 0; k < 3; k++)
				bodies[i].at[k] += 0.001 * bodies[i].speed[k];
	}
	for (int i = 0; i < BODIES; i++)
		sum = mix(sum, bits(bodies[i].at[0]));
	return sum;
}

/* The Mandelbrot set: scalar, with a branch on every turn. */
static uint64_t mandelbrot_unit(void)
{
	uint64_t sum = 0;

	for (int row = 0; row < 48; row++)
		for (int column = 0; column < 64; column++) {
			double cr = column / 24.0 - 2, ci = row / 20.0 - 1.2, r = 0, i = 0;
			int turn = 0;

			while (turn < 200 && r * r + i * i < 4) {
				double new = r * r - i * i + cr;

				i = 2 * r * i + ci;
				r = new;
				turn++;
			}
			sum = sum * 31 + (uint64_t)turn;
		}
	return sum;
}

/* The x87 unit: 80-bit numbers on a stack. */
static uint64_t x87_unit(void)
{
	long double x = 1, y = 0.5L, sum = 0;

	for (int i = 1; i < 20000; i++) {
		x = x * 0.999L + y / (long double)i;
		y = __builtin_sqrtl(x * x + y * y) * 0.5L;
		sum += x - y;
	}
	return bits((double)sum);
}

/*
 * The mathematical library. Which of its variants is used depends on the processor, and they differ in the last bit;
 * the sum is rounded where that does not show.
 */
static uint64_t libm_unit(void)
{
	double sum = 0;

	for (int i = 1; i < 6000; i++) {
		double x = i * 0.01;

		sum += sin(x) * cos(x * 0.7) + exp(-x * 0.1) + log(x) + pow(x, 0.3) + atan(x);
	}
	return (uint64_t)llround(sum * 1e5);
}

/* Conversions between integers and both kinds of floating point, with rounding. */
static uint64_t convert_unit(void)
{
	uint64_t state = 99, sum = 0;

	for (int i = 0; i < 60000; i++) {
		int64_t integer = (int64_t)next_random(&state) >> 24;
		double wide = (double)integer * 0.37;
		float narrow = (float)wide;

		sum += (uint64_t)(int64_t)wide + (uint64_t)(int64_t)narrow;
		sum ^= (uint32_t)_mm_cvtsd_si32(_mm_set_sd((double)(int32_t)integer * 0.5));
	}
	return sum;
}

/* Vectors of integers, SSE2: bytes, words and shuffles. */

#define PIXELS 65536

static uint8_t picture[PIXELS] __attribute__((aligned(32)));

static void picture_setup(void)
{
	uint64_t state = 5;

	for (size_t i = 0; i < PIXELS; i++)
		picture[i] = (uint8_t)(next_random(&state) >> 24);
}

static uint64_t integers_sse2_unit(void)
{
	const __m128i zero = _mm_setzero_si128(), weights = _mm_set_epi16(1, 2, 3, 4, 5, 6, 7, 8);
	__m128i total = zero, differences = zero;
	uint64_t lanes[2];

	for (int pass = 0; pass < 200; pass++)
		for (size_t i = 16; i < PIXELS; i += 16) {
			__m128i here = _mm_load_si128((const __m128i *)(picture + i));
			__m128i before = _mm_loadu_si128((const __m128i *)(picture + i - 3));
			__m128i low = _mm_unpacklo_epi8(_mm_avg_epu8(here, before), zero);

			total = _mm_add_epi32(total, _mm_madd_epi16(low, weights));
			differences = _mm_add_epi64(differences, _mm_sad_epu8(_mm_shuffle_epi32(here, 0x1b), before));
		}
	_mm_storeu_si128((__m128i *)lanes, _mm_add_epi64(total, differences));
	return mix(lanes[0], lanes[1]);
}

static void picture_avx2_setup(void)
{
	need_avx2();
	picture_setup();
}

static AVX2 uint64_t integers_avx2_unit(void)
{
	const __m256i order = _mm256_set_epi64x(0x0001020304050607, 0x08090a0b0c0d0e0f, 0x0f0d0b0907050301,
						0x0e0c0a0806040200);
	__m256i total = _mm256_setzero_si256();
	uint64_t lanes[4], sum = 0;

	for (int pass = 0; pass < 40; pass++)
		for (size_t i = 32; i < PIXELS; i += 32) {
			__m256i here = _mm256_shuffle_epi8(_mm256_load_si256((const __m256i *)(picture + i)), order);
			__m256i before = _mm256_loadu_si256((const __m256i *)(picture + i - 3));
			__m256i more = _mm256_cmpgt_epi8(here, before);

			total = _mm256_add_epi32(total, _mm256_blendv_epi8(here, before, more));
			total = _mm256_xor_si256(total, _mm256_permute4x64_epi64(_mm256_srli_epi32(total, 3), 0x39));
		}
	_mm256_storeu_si256((__m256i *)lanes, total);
	for (int i = 0; i < 4; i++)
		sum = mix(sum, lanes[i]);
	return sum;
}

const struct program vector_programs[] = {
	{ "dot-sse2", "vector", dot_setup, dot_sse2_unit },
	{ "dot-avx2", "vector", dot_avx2_setup, dot_avx2_unit },
	{ "matrix-sse2", "vector", matrix_setup, matrix_sse2_unit },
	{ "matrix-avx2", "vector", matrix_avx2_setup, matrix_avx2_unit },
	{ "nbody", "vector", NULL, nbody_unit },
	{ "mandelbrot", "vector", NULL, mandelbrot_unit },
	{ "x87", "vector", NULL, x87_unit },
	{ "libm", "vector", NULL, libm_unit },
	{ "convert", "vector", NULL, convert_unit },
	{ "integers-sse2", "vector", picture_setup, integers_sse2_unit },
	{ "integers-avx2", "vector", picture_avx2_setup, integers_avx2_unit },
	{ 0 },
};
