/* Code made at run time: what just-in-time compilers, loaders and unpackers do to a processor. */
#define _GNU_SOURCE
#include <string.h>
#include <sys/mman.h>

#include "bench.h"

#define PAGE 4096

typedef uint32_t (*function)(void);

static uint8_t *code;

static void change(int protection)
{
	if (mprotect(code, PAGE, protection))
		fail("mprotect");
}

/* Writes "mov eax, value; add eax, 3; ret" and gives its length. */
static size_t emit(uint8_t *at, uint32_t value)
{
	at[0] = 0xb8;
	memcpy(at + 1, &value, 4);
	memcpy(at + 5, "\x83\xc0\x03\xc3", 4);
	return 9;
}

static void rewrite_setup(void)
{
	code = pages(PAGE);
	change(PROT_READ | PROT_WRITE | PROT_EXEC);
}

/* A function rewritten in place before each call. */
static uint64_t rewrite_unit(void)
{
	uint64_t sum = 0;

	for (uint32_t i = 0; i < 5000; i++) {
		emit(code, i * 7);
		sum += ((function)(uintptr_t)code)();
	}
	return sum;
}

static void protect_setup(void)
{
	code = pages(PAGE);
}

/* The same by the rule that no page is writable and executable at once. */
static uint64_t protect_unit(void)
{
	uint64_t sum = 0;

	for (uint32_t i = 0; i < 500; i++) {
		change(PROT_READ | PROT_WRITE);
		emit(code, i * 5);
		change(PROT_READ | PROT_EXEC);
		sum += ((function)(uintptr_t)code)();
	}
	return sum;
}

/* A loop that counts in a word of the page that it is in. */
static void neighbours_setup(void)
{
	/* mov ecx, 1000; 1: inc dword ptr [rip + 1024]; dec ecx; jnz 1b; mov eax, [rip + 1024 - 10]; ret */
	static const uint8_t loop[] = {
		0xb9, 0xe8, 3, 0, 0, 0xff, 0x05, 0, 4, 0, 0, 0xff, 0xc9, 0x75, 0xf6, 0x8b, 0x05, 0xf6, 3, 0, 0, 0xc3,
	};

	rewrite_setup();
	memcpy(code, loop, sizeof loop);
}

static uint64_t neighbours_unit(void)
{
	uint64_t sum = 0;

	memset(code + 11 + 1024, 0, 4);
	for (int i = 0; i < 200; i++)
		sum = mix(sum, ((function)(uintptr_t)code)());
	return sum;
}

/* Much code, each piece of which runs once: what starting a program is. */

#define COLD 2000

static uint64_t cold_unit(void)
{
	const size_t size = 40 * PAGE;
	uint64_t sum = 0;
	size_t at = 0;

	code = pages(size);
	for (uint32_t i = 0; i < COLD; i++) {
		size_t length = emit(code + at, i);

		/* Up to the next function: some padding whose length varies. */
		at += length + i % 16 * 8;
	}
	if (mprotect(code, size, PROT_READ | PROT_EXEC))
		fail("mprotect");
	at = 0;
	for (uint32_t i = 0; i < COLD; i++) {
		sum += ((function)(uintptr_t)(code + at))();
		at += 9 + i % 16 * 8;
	}
	if (munmap(code, size))
		fail("munmap");
	return sum;
}

const struct program code_programs[] = {
	{ "rewrite", "code", rewrite_setup, rewrite_unit },
	{ "write-xor-execute", "code", protect_setup, protect_unit },
	{ "code-and-data", "code", neighbours_setup, neighbours_unit },
	{ "cold", "code", NULL, cold_unit },
	{ 0 },
};
