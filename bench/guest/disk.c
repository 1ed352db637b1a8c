/*
 * Requests to a disk, past the page cache, so many at a time: in order or at random, reading or writing. Every block that is
 * read is checked as soon as it is there; what was written is read again and checked when the time has been taken.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "bench.h"
#include "content.h"

#define DEEPEST 32

/* A way to use a disk. */
struct load {
	/* How many requests, how many at a time, and how many blocks in each. */
	unsigned long count, depth, blocks;
	int random, writes;
};

/* A disk in use. */
struct disk {
	int fd;
	aio_context_t context;
	/* How many requests' worth it holds. */
	uint64_t places;
	/* What new blocks are marked with; places at random follow from it, too. */
	uint64_t generation;
	/* Whether every block that is read must be of that generation. */
	int only_new;
	uint64_t *buffers[DEEPEST];
	struct iocb requests[DEEPEST];
};

static size_t bytes_of(const struct load *load)
{
	return load->blocks * BLOCK;
}

static uint64_t *block_at(struct disk *disk, size_t slot, unsigned long block)
{
	return disk->buffers[slot] + block * (BLOCK / sizeof(uint64_t));
}

static void submit(struct disk *disk, const struct load *load, size_t slot, uint64_t place)
{
	struct iocb *request = &disk->requests[slot];
	uint64_t first = place * load->blocks;

	if (load->writes)
		for (unsigned long i = 0; i < load->blocks; i++)
			content_fill(block_at(disk, slot, i), first + i, disk->generation);
	*request = (struct iocb){
		.aio_data = slot,
		.aio_lio_opcode = load->writes ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD,
		.aio_fildes = (uint32_t)disk->fd,
		.aio_buf = (uintptr_t)disk->buffers[slot],
		.aio_nbytes = bytes_of(load),
		.aio_offset = (int64_t)(place * bytes_of(load)),
	};
	if (syscall(SYS_io_submit, disk->context, 1L, &request) != 1)
		fail("io_submit");
}

static void check(struct disk *disk, const struct load *load, const struct io_event *done)
{
	uint64_t first = (uint64_t)disk->requests[done->data].aio_offset / BLOCK;

	if (done->res != (int64_t)bytes_of(load))
		lacks("success of a request");
	for (unsigned long i = 0; !load->writes && i < load->blocks; i++) {
		uint64_t generation = content_check(block_at(disk, done->data, i), first + i);

		if (disk->only_new && generation != disk->generation)
			lacks("block as it was written last");
	}
}

/* Makes all requests. */
static void drive(struct disk *disk, const struct load *load)
{
	uint64_t random = disk->generation;
	unsigned long sent = 0, done = 0;
	size_t free_slots[DEEPEST], free = 0;
	struct io_event events[DEEPEST];

	for (size_t slot = 0; slot < load->depth; slot++)
		free_slots[free++] = slot;
	while (done < load->count) {
		long came;

		while (free && sent < load->count) {
			uint64_t place = load->random ? next_random(&random) : sent;

			submit(disk, load, free_slots[--free], place % disk->places);
			sent++;
		}
		came = syscall(SYS_io_getevents, disk->context, 1L, (long)DEEPEST, events, NULL);
		if (came < 1)
			fail("io_getevents");
		for (long i = 0; i < came; i++) {
			check(disk, load, &events[i]);
			free_slots[free++] = events[i].data;
		}
		done += (unsigned long)came;
	}
}

static uint64_t measure(const char *path, struct load load)
{
	struct disk disk = { .fd = open(path, O_RDWR | O_DIRECT), .generation = io_generation() };
	uint64_t bytes;

	if (disk.fd < 0 || ioctl(disk.fd, BLKGETSIZE64, &bytes))
		fail(path);
	disk.places = bytes / bytes_of(&load);
	for (size_t slot = 0; slot < load.depth; slot++)
		disk.buffers[slot] = pages(bytes_of(&load));
	if (!disk.places || syscall(SYS_io_setup, (unsigned int)DEEPEST, &disk.context))
		fail("io_setup");
	io_start();
	drive(&disk, &load);
	io_end();
	if (load.writes) {
		disk.only_new = 1;
		load.writes = 0;
		drive(&disk, &load);
	}
	return 0;
}

#define SEQUENTIAL .depth = 4, .blocks = 32
#define RANDOM .blocks = 1, .random = 1
#define LOAD(name, ...)                                                                \
	uint64_t name(const char *place, unsigned long count)                          \
	{                                                                              \
		return measure(place, (struct load){ .count = count, __VA_ARGS__ });   \
	}

LOAD(read_in_order, SEQUENTIAL)
LOAD(write_in_order, SEQUENTIAL, .writes = 1)
LOAD(read_at_random, RANDOM, .depth = 1)
LOAD(write_at_random, RANDOM, .depth = 1, .writes = 1)
LOAD(read_many_at_random, RANDOM, .depth = 32)
LOAD(write_many_at_random, RANDOM, .depth = 32, .writes = 1)
