/* Integer work: what compiled programs spend their time with, a kind each. */
#include <immintrin.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"

#define SEED 0x123456789abcdefu

/* Sorting through a comparison callback: calls through a pointer, branches that cannot be foreseen. */

#define SORT_COUNT 4096

static uint32_t unsorted[SORT_COUNT], sorted[SORT_COUNT];

static void sort_setup(void)
{
	uint64_t state = SEED;

	for (size_t i = 0; i < SORT_COUNT; i++)
		unsorted[i] = (uint32_t)(next_random(&state) >> 20);
}

static int compare(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return (x > y) - (x < y);
}

static uint64_t sort_unit(void)
{
	uint64_t sum = 0;

	memcpy(sorted, unsorted, sizeof sorted);
	qsort(sorted, SORT_COUNT, sizeof *sorted, compare);
	for (size_t i = 0; i < SORT_COUNT; i += 16)
		sum = mix(sum, sorted[i]);
	return sum;
}

/* A hash table with open addressing. */

#define SLOTS 16384
#define KEYS 8192

static uint64_t slots[SLOTS];

static size_t slot_of(uint64_t key)
{
	size_t at = (size_t)(key * 0x9e3779b97f4a7c15u >> 50);

	while (slots[at] && slots[at] != key)
		at = (at + 1) % SLOTS;
	return at;
}

static uint64_t hash_unit(void)
{
	uint64_t state = SEED, sum = 0;

	memset(slots, 0, sizeof slots);
	for (size_t i = 0; i < KEYS; i++) {
		uint64_t key = next_random(&state);

		slots[slot_of(key)] = key;
	}
	state = SEED;
	for (size_t i = 0; i < 2 * KEYS; i++)
		sum += slot_of(next_random(&state)) * (i + 1);
	return sum;
}

/* CRC-32 by a table: a load that depends on the one before. */

#define CRC_BYTES 262144

static uint32_t crc_table[256];
static uint8_t crc_data[CRC_BYTES];

static void crc_setup(void)
{
	uint64_t state = SEED;

	for (uint32_t i = 0; i < 256; i++) {
		uint32_t c = i;

		for (int bit = 0; bit < 8; bit++)
			c = c & 1 ? 0xedb88320u ^ c >> 1 : c >> 1;
		crc_table[i] = c;
	}
	for (size_t i = 0; i < CRC_BYTES; i++)
		crc_data[i] = (uint8_t)(next_random(&state) >> 33);
}

static uint64_t crc_unit(void)
{
	uint32_t crc = ~0u;

	for (size_t i = 0; i < CRC_BYTES; i++)
		crc = crc_table[(crc ^ crc_data[i]) & 0xff] ^ crc >> 8;
	return ~crc;
}

/* Numbers of many limbs: chains of ADC, and of MUL with carries. */

#define LIMBS 128

static uint64_t add_limbs(uint64_t *to, const uint64_t *from)
{
	unsigned char carry = 0;
	unsigned long long limb;

	for (size_t i = 0; i < LIMBS; i++) {
		carry = _addcarry_u64(carry, to[i], from[i], &limb);
		to[i] = limb;
	}
	return carry;
}

static void multiply_limbs(uint64_t *to, const uint64_t *a, const uint64_t *b)
{
	memset(to, 0, 2 * LIMBS * sizeof *to);
	for (size_t i = 0; i < LIMBS; i++) {
		uint64_t carry = 0;

		for (size_t j = 0; j < LIMBS; j++) {
			unsigned __int128 t = (unsigned __int128)a[i] * b[j] + to[i + j] + carry;

			to[i + j] = (uint64_t)t;
			carry = (uint64_t)(t >> 64);
		}
		to[i + LIMBS] = carry;
	}
}

static uint64_t bignum_unit(void)
{
	uint64_t a[LIMBS] = { 1 }, b[LIMBS] = { 1 }, product[2 * LIMBS], sum = 0;

	for (int i = 0; i < 2000; i++) {
		sum += add_limbs(a, b);
		sum += add_limbs(b, a);
	}
	for (int i = 0; i < 8; i++) {
		multiply_limbs(product, a, b);
		memcpy(a, product + i, sizeof a);
	}
	for (size_t i = 0; i < 2 * LIMBS; i++)
		sum = mix(sum, product[i]);
	return sum;
}

/* A search tree: pointers to follow, branches that depend on what is loaded. */

#define NODES 4096

struct node {
	uint64_t key;
	struct node *child[2];
};

static struct node nodes[NODES];

static uint64_t sum_in_order(const struct node *node, uint64_t sum)
{
	if (!node)
		return sum;
	sum = mix(sum_in_order(node->child[0], sum), node->key);
	return sum_in_order(node->child[1], sum);
}

static uint64_t tree_unit(void)
{
	struct node *root = NULL;
	uint64_t state = SEED;

	for (size_t i = 0; i < NODES; i++) {
		struct node *new = &nodes[i], **link = &root;

		*new = (struct node){ .key = next_random(&state) };
		while (*link)
			link = &(*link)->child[new->key > (*link)->key];
		*link = new;
	}
	return sum_in_order(root, 0);
}

/* An interpreter with threaded code: an indirect jump for every few instructions. */

enum { PUSH, ADD, DUPLICATE, OVER, SWAP, SHIFT, XOR, DECREMENT, LOOP, STOP };

static const uint8_t bytecode[] = {
	PUSH, 1, DUPLICATE, SHIFT, XOR, OVER, ADD, SWAP, DECREMENT, SWAP, LOOP, 2, STOP,
};

static uint64_t interpreter_unit(void)
{
	static const void *const handlers[] = {
		[PUSH] = &&push, [ADD] = &&add,	  [DUPLICATE] = &&duplicate, [OVER] = &&over, [SWAP] = &&swap,
		[SHIFT] = &&shift, [XOR] = &&xor, [DECREMENT] = &&decrement, [LOOP] = &&loop, [STOP] = &&stop,
	};
	uint64_t stack[8] = { 100000 }, *top = stack, other;
	const uint8_t *pc = bytecode;

#define NEXT goto *handlers[*pc++]
	NEXT;
push:
	*++top = *pc++;
	NEXT;
add:
	top[-1] += *top;
	top--;
	NEXT;
duplicate:
	top[1] = *top;
	top++;
	NEXT;
over:
	top[1] = top[-1];
	top++;
	NEXT;
swap:
	other = *top;
	*top = top[-1];
	top[-1] = other;
	NEXT;
shift:
	*top = *top << 5 | *top >> 59;
	NEXT;
xor:
	top[-1] ^= *top;
	top--;
	NEXT;
decrement:
	--*top;
	NEXT;
loop:
	pc = top[-1] ? bytecode + *pc : pc + 1;
	NEXT;
stop:
	return *top;
#undef NEXT
}

/* Recursive calls: the call stack and nothing else. */

static __attribute__((noinline, noclone, optimize("no-optimize-sibling-calls"))) uint64_t tak(int x, int y, int z)
{
	if (y >= x)
		return (uint64_t)z;
	return tak((int)tak(x - 1, y, z), (int)tak(y - 1, z, x), (int)tak(z - 1, x, y));
}

static uint64_t recursion_unit(void)
{
	return tak(18, 12, 6) + tak(14, 7, 1);
}

/* Virtual calls: the callee is found in a table that the object points to. */

#define SHAPES 1024

struct shape;
struct methods {
	uint64_t (*area)(const struct shape *);
	void (*grow)(struct shape *);
};
struct shape {
	const struct methods *methods;
	uint32_t width, height;
};

static uint64_t square_area(const struct shape *s) { return (uint64_t)s->width * s->width; }
static uint64_t box_area(const struct shape *s) { return (uint64_t)s->width * s->height; }
static uint64_t wedge_area(const struct shape *s) { return (uint64_t)s->width * s->height / 2; }
static uint64_t frame_area(const struct shape *s) { return 2 * ((uint64_t)s->width + s->height); }
static void widen(struct shape *s) { s->width++; }
static void heighten(struct shape *s) { s->height += 3; }

static const struct methods kinds[] = {
	{ square_area, widen }, { box_area, heighten }, { wedge_area, widen }, { frame_area, heighten },
};
static struct shape shapes[SHAPES];

static uint64_t virtual_unit(void)
{
	uint64_t state = SEED, sum = 0;

	for (size_t i = 0; i < SHAPES; i++) {
		uint64_t r = next_random(&state);

		shapes[i] = (struct shape){ &kinds[r & 3], (uint32_t)(r >> 8 & 0xff), (uint32_t)(r >> 16 & 0xff) };
	}
	for (int pass = 0; pass < 100; pass++)
		for (size_t i = 0; i < SHAPES; i++) {
			struct shape *shape = &shapes[i];

			shape->methods->grow(shape);
			sum += shape->methods->area(shape);
		}
	return sum;
}

/* Greatest common divisors: division, whose time depends on the operands. */
static uint64_t divide_unit(void)
{
	uint64_t state = SEED, sum = 0;

	for (int i = 0; i < 2000; i++) {
		uint64_t a = next_random(&state), b = next_random(&state) | 1;

		while (b) {
			uint64_t rest = a % b;

			a = b;
			b = rest;
		}
		sum = mix(sum, a);
	}
	return sum;
}

uint64_t sha256_unit(void);

const struct program integer_programs[] = {
	{ "sort", "integer", sort_setup, sort_unit },
	{ "hash", "integer", NULL, hash_unit },
	{ "crc", "integer", crc_setup, crc_unit },
	{ "sha256", "integer", NULL, sha256_unit },
	{ "bignum", "integer", NULL, bignum_unit },
	{ "tree", "integer", NULL, tree_unit },
	{ "interpreter", "integer", NULL, interpreter_unit },
	{ "recursion", "integer", NULL, recursion_unit },
	{ "virtual", "integer", NULL, virtual_unit },
	{ "divide", "integer", NULL, divide_unit },
	{ 0 },
};
