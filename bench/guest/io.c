/* Input and output: which ways of it there are, and where their time begins and ends. */
#include <string.h>
#include <time.h>

#include "bench.h"

/* Those of copy.c and disk.c. */
io_function copy_in, copy_out, copy_nothing;
io_function read_in_order, write_in_order, read_at_random, write_at_random, read_many_at_random, write_many_at_random;

static const struct {
	const char *name;
	io_function *run;
} ways[] = {
	{ "in", copy_in },
	{ "out", copy_out },
	{ "nothing", copy_nothing },
	{ "seq-read", read_in_order },
	{ "seq-write", write_in_order },
	{ "rand-read", read_at_random },
	{ "rand-write", write_at_random },
	{ "rand-read-32", read_many_at_random },
	{ "rand-write-32", write_many_at_random },
};

io_function *find_io(const char *name)
{
	for (size_t i = 0; i < sizeof ways / sizeof *ways; i++)
		if (!strcmp(ways[i].name, name))
			return ways[i].run;
	return NULL;
}

void io_start(void)
{
	say("@ start\n");
}

void io_end(void)
{
	say("@ end\n");
}

uint64_t io_generation(void)
{
	struct timespec now;

	if (clock_gettime(CLOCK_MONOTONIC, &now))
		fail("clock_gettime");
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}
