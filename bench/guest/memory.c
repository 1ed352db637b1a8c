/* Memory: moved in blocks by each means there is, followed by pointers, touched at random. */
#include <emmintrin.h>
#include <string.h>

#include "bench.h"

/* Blocks. */

#define BLOCK 262144
#define PASSES 16

static uint8_t *from, *to;

static void block_setup(void)
{
	uint64_t state = 3;

	from = pages(BLOCK);
	/* Not a power of two apart, where both would want the same place in a cache or a TLB. */
	to = pages(BLOCK + 21 * 4096);
	for (size_t i = 0; i < BLOCK / 8; i++)
		((uint64_t *)from)[i] = next_random(&state);
}

/* A sample of what has arrived. */
static uint64_t block_sum(void)
{
	uint64_t sum = 0;

	for (size_t i = 0; i < BLOCK / 8; i += 512)
		sum = mix(sum, ((const uint64_t *)to)[i]);
	return sum;
}

static uint64_t copy_loop_unit(void)
{
	for (int pass = 0; pass < PASSES; pass++)
		for (size_t i = 0; i < BLOCK / 8; i++)
			((volatile uint64_t *)to)[i] = ((const uint64_t *)from)[i];
	return block_sum();
}

static uint64_t copy_rep_unit(void)
{
	for (int pass = 0; pass < PASSES; pass++) {
		const void *source = from;
		void *target = to;
		size_t count = BLOCK;

		__asm__ volatile("rep movsb" : "+S"(source), "+D"(target), "+c"(count) : : "memory");
	}
	return block_sum();
}

static uint64_t copy_vector_unit(void)
{
	for (int pass = 0; pass < PASSES; pass++)
		for (size_t i = 0; i < BLOCK; i += 32) {
			__m128i x = _mm_loadu_si128((const __m128i *)(from + i));
			__m128i y = _mm_loadu_si128((const __m128i *)(from + i + 16));

			_mm_store_si128((__m128i *)(to + i), x);
			_mm_store_si128((__m128i *)(to + i + 16), y);
			__asm__ volatile("" : : : "memory");
		}
	return block_sum();
}

static uint64_t copy_libc_unit(void)
{
	for (int pass = 0; pass < PASSES; pass++) {
		memcpy(to, from, BLOCK);
		__asm__ volatile("" : : : "memory");
	}
	return block_sum();
}

static uint64_t fill_loop_unit(void)
{
	for (int pass = 0; pass < PASSES; pass++)
		for (size_t i = 0; i < BLOCK / 8; i++)
			((volatile uint64_t *)to)[i] = (uint64_t)pass;
	return block_sum();
}

static uint64_t fill_rep_unit(void)
{
	for (int pass = 0; pass < PASSES; pass++) {
		void *target = to;
		size_t count = BLOCK / 8;

		__asm__ volatile("rep stosq" : "+D"(target), "+c"(count) : "a"((uint64_t)pass) : "memory");
	}
	return block_sum();
}

static uint64_t fill_vector_unit(void)
{
	for (int pass = 0; pass < PASSES; pass++) {
		const __m128i value = _mm_set1_epi8((char)pass);

		for (size_t i = 0; i < BLOCK; i += 32) {
			_mm_store_si128((__m128i *)(to + i), value);
			_mm_store_si128((__m128i *)(to + i + 16), value);
			__asm__ volatile("" : : : "memory");
		}
	}
	return block_sum();
}

/* Pointers: each leads to the next, in one cycle through all (Sattolo's algorithm). */

#define CELL 64

static void **chain;

static void make_chain(size_t bytes)
{
	size_t cells = bytes / CELL;
	uint8_t *memory = pages(bytes);
	uint64_t state = 11;

	for (size_t i = 0; i < cells; i++)
		*(size_t *)(memory + i * CELL) = i;
	for (size_t i = cells - 1; i; i--) {
		size_t j = next_random(&state) % i;
		size_t *x = (size_t *)(memory + i * CELL), *y = (size_t *)(memory + j * CELL), other = *x;

		*x = *y;
		*y = other;
	}
	for (size_t i = 0; i < cells; i++) {
		void **cell = (void **)(memory + i * CELL);

		*cell = memory + *(size_t *)cell * CELL;
	}
	chain = (void **)memory;
}

static void chase_small_setup(void)
{
	make_chain(16 << 10);
}

static void chase_large_setup(void)
{
	make_chain(32 << 20);
}

/* Where it ends, from where it began. */
static uint64_t chase(size_t steps)
{
	void **at = chain;

	while (steps--)
		at = *at;
	return (uint64_t)((uint8_t *)at - (uint8_t *)chain);
}

static uint64_t chase_small_unit(void)
{
	return chase(500000);
}

static uint64_t chase_large_unit(void)
{
	return chase(20000);
}

/* Words at random places: reads that do not wait for each other, and writes. */

#define AREA (16u << 20)

static uint64_t *area;

static void area_setup(void)
{
	area = pages(AREA);
	for (size_t i = 0; i < AREA / 8; i += 512)
		area[i] = i;
}

static uint64_t random_read_unit(void)
{
	uint64_t state = 13, sum = 0;

	for (int i = 0; i < 50000; i++)
		sum += area[next_random(&state) % (AREA / 8)] + (uint64_t)i;
	return sum;
}

static uint64_t random_write_unit(void)
{
	uint64_t state = 17;

	for (int i = 0; i < 50000; i++) {
		uint64_t r = next_random(&state);

		area[r % (AREA / 8)] = r;
	}
	return area[state % (AREA / 8)];
}

/* One word on each page: every access needs another translation. */
static uint64_t stride_unit(void)
{
	uint64_t sum = 0;

	for (int pass = 0; pass < 16; pass++)
		for (size_t i = 0; i < AREA / 8; i += 512)
			sum += area[i];
	return sum;
}

const struct program memory_programs[] = {
	{ "copy-loop", "memory", block_setup, copy_loop_unit },
	{ "copy-rep", "memory", block_setup, copy_rep_unit },
	{ "copy-vector", "memory", block_setup, copy_vector_unit },
	{ "copy-libc", "memory", block_setup, copy_libc_unit },
	{ "fill-loop", "memory", block_setup, fill_loop_unit },
	{ "fill-rep", "memory", block_setup, fill_rep_unit },
	{ "fill-vector", "memory", block_setup, fill_vector_unit },
	{ "chase-small", "memory", chase_small_setup, chase_small_unit },
	{ "chase-large", "memory", chase_large_setup, chase_large_unit },
	{ "random-read", "memory", area_setup, random_read_unit },
	{ "random-write", "memory", area_setup, random_write_unit },
	{ "page-stride", "memory", area_setup, stride_unit },
	{ 0 },
};
