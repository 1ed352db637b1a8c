/*
 * What disks, files and connections carry: numbered blocks, each of which says which one it is and when it was written,
 * and the rest of which follows from that. So a block that is old, damaged or somewhere else is found out, wherever it is
 * read. xtask/src/bench/io/content.rs makes and reads the same.
 */
#ifndef CONTENT_H
#define CONTENT_H

#include <stddef.h>
#include <stdint.h>

#define BLOCK 4096
#define MIB (1 << 20)
/* Blocks that are moved at once by who copies. */
#define CHUNK_BLOCKS (MIB / BLOCK)

/* A running sum that the order of words matters to (Fletcher's, of 64-bit words). */
struct sum {
	uint64_t a, b;
};

/* Fills a block. */
void content_fill(uint64_t *block, uint64_t number, uint64_t generation);
/* Ends the program unless this is that block, of whatever generation; gives its generation. */
uint64_t content_check(const uint64_t *block, uint64_t number);
/* Adds bytes, a multiple of eight. */
void content_add(struct sum *sum, const void *data, size_t bytes);
/* What a sum comes to. */
uint64_t content_sum(const struct sum *sum);

#endif
