/* Blocks: filling, checking, summing. */
#include "bench.h"
#include "content.h"

#define WORDS (BLOCK / sizeof(uint64_t))
/* Between the words of a block. */
#define STEP 0x9e3779b97f4a7c15u

void content_fill(uint64_t *block, uint64_t number, uint64_t generation)
{
	uint64_t word = mix(number, generation);

	block[0] = number;
	block[1] = generation;
	for (size_t i = 2; i < WORDS; i++)
		block[i] = word += STEP;
}

uint64_t content_check(const uint64_t *block, uint64_t number)
{
	uint64_t word = mix(number, block[1]), wrong = block[0] ^ number;

	for (size_t i = 2; i < WORDS; i++)
		wrong |= block[i] ^ (word += STEP);
	if (wrong)
		lacks("block where it was written");
	return block[1];
}

void content_add(struct sum *sum, const void *data, size_t bytes)
{
	const uint64_t *words = data;
	uint64_t a = sum->a, b = sum->b;

	for (size_t i = 0; i < bytes / sizeof *words; i++) {
		a += words[i];
		b += a;
	}
	sum->a = a;
	sum->b = b;
}

uint64_t content_sum(const struct sum *sum)
{
	return mix(sum->a, sum->b);
}
