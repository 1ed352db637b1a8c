/*
 * What every program of the benchmark is: a unit of work that gives the same checksum each time it is done, however
 * often and on whatever it is done. So the driver may repeat it as often as a fast or a slow engine needs, and the
 * checksums of all of them can be compared.
 */
#ifndef BENCH_H
#define BENCH_H

#include <stddef.h>
#include <stdint.h>

struct program {
	const char *name;
	const char *class;
	/* Prepares what units share, untimed; may be NULL. */
	void (*setup)(void);
	/* One unit: about a millisecond on a present processor. */
	uint64_t (*unit)(void);
};

/* The programs of a file, ended by one without a name. */
extern const struct program integer_programs[];
extern const struct program vector_programs[];
extern const struct program memory_programs[];
extern const struct program kernel_programs[];
extern const struct program process_programs[];
extern const struct program socket_programs[];
extern const struct program code_programs[];
extern const struct program real_programs[];

/*
 * A way to move data, so many times: a MiB or a request. It puts the marks itself, where its time begins and ends, and gives
 * the checksum of what was moved, if that is of interest.
 */
typedef uint64_t io_function(const char *place, unsigned long count);

/* The way of that name, or NULL. */
io_function *find_io(const char *name);
/* The marks. */
void io_start(void);
void io_end(void);
/* What data that is made now is marked with; never 0. */
uint64_t io_generation(void);

/* Makes the devices of a guest usable; what an init does. */
void devices_up(void);
/* Waits until a driver has found its device, but not for ever. */
void wait_for_device(const char *path);

/* Where files and shared things go: a file system in memory, on the host as in a guest. */
#define SCRATCH "/dev/shm"

/* Writes a marker line. */
void say(const char *line);
/* Ends the program: says what failed, with errno's text. */
void fail(const char *what) __attribute__((noreturn, cold));
/* Ends the program: says what the machine lacks. */
void lacks(const char *what) __attribute__((noreturn, cold));
/* Memory of the program, zeroed, aligned to a page; never freed. */
void *pages(size_t bytes);

/* A step of a checksum. */
static inline uint64_t mix(uint64_t sum, uint64_t value)
{
	sum = (sum ^ value) * 0x9e3779b97f4a7c15u;
	return sum ^ sum >> 29;
}

/* The next of a fixed sequence of numbers (xorshift64). */
static inline uint64_t next_random(uint64_t *state)
{
	uint64_t x = *state;

	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	return *state = x;
}

#endif
