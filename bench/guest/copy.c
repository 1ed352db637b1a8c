/*
 * Copies into and out of the machine: from or to a disk, a file, or a peer on the host by TCP or vsock. What comes in is
 * summed and forgotten; what goes out is made on the way. A place is a path, tcp:PORT or vsock:PORT.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/vm_sockets.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "bench.h"
#include "content.h"

/* The host, behind a user-mode network. */
#define HOST 0x0a000202
/* Of the word that a connection begins with: what follows comes from the guest. The rest counts MiB. */
#define FROM_GUEST ((uint64_t)1 << 63)

static int connect_to(int fd, const void *address, socklen_t size)
{
	if (fd < 0 || connect(fd, address, size))
		fail("connect");
	return fd;
}

/* A connection to a peer, or -1 if the place is none. */
static int peer_at(const char *place, uint64_t greeting)
{
	unsigned int port;
	int fd;

	if (sscanf(place, "tcp:%u", &port) == 1) {
		struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port),
					       .sin_addr = { htonl(HOST) } };

		fd = connect_to(socket(AF_INET, SOCK_STREAM, 0), &address, sizeof address);
	} else if (sscanf(place, "vsock:%u", &port) == 1) {
		struct sockaddr_vm address = { .svm_family = AF_VSOCK, .svm_port = port,
					       .svm_cid = VMADDR_CID_HOST };

		fd = connect_to(socket(AF_VSOCK, SOCK_STREAM, 0), &address, sizeof address);
	} else {
		return -1;
	}
	if (write(fd, &greeting, sizeof greeting) != sizeof greeting)
		fail(place);
	return fd;
}

/* Reads exactly so much. */
static void read_all(int fd, void *buffer, size_t bytes)
{
	for (uint8_t *to = buffer; bytes;) {
		ssize_t got = read(fd, to, bytes);

		if (got < 0)
			fail("read");
		if (!got)
			lacks("more to read");
		to += got;
		bytes -= (size_t)got;
	}
}

static void write_all(int fd, const void *buffer, size_t bytes)
{
	for (const uint8_t *from = buffer; bytes;) {
		ssize_t put = write(fd, from, bytes);

		if (put < 0)
			fail("write");
		from += put;
		bytes -= (size_t)put;
	}
}

/* Nothing that was read or written before shall be in the page cache. */
static void forget_files(void)
{
	int fd = open("/proc/sys/vm/drop_caches", O_WRONLY);

	sync();
	if (fd >= 0 && write(fd, "1", 1) != 1)
		fail("drop_caches");
	close(fd);
}

uint64_t copy_in(const char *place, unsigned long mib)
{
	uint64_t *chunk = pages(MIB);
	struct sum sum = { 0, 0 };
	int fd;

	forget_files();
	io_start();
	fd = peer_at(place, mib);
	if (fd < 0)
		fd = open(place, O_RDONLY);
	if (fd < 0)
		fail(place);
	for (unsigned long i = 0; i < mib; i++) {
		read_all(fd, chunk, MIB);
		content_add(&sum, chunk, MIB);
	}
	io_end();
	return content_sum(&sum);
}

/* That all of it has arrived: the peer answers with its sum, and what is on a disk is made durable. */
static void settle(int fd, int is_peer, uint64_t sum)
{
	uint64_t theirs;

	if (is_peer) {
		read_all(fd, &theirs, sizeof theirs);
		if (theirs != sum)
			lacks("equal sum at the peer");
	} else if (fsync(fd)) {
		fail("fsync");
	}
}

uint64_t copy_out(const char *place, unsigned long mib)
{
	uint64_t *chunk = pages(MIB), generation = io_generation();
	struct sum sum = { 0, 0 };
	int fd, is_peer;

	forget_files();
	io_start();
	fd = peer_at(place, FROM_GUEST | mib);
	is_peer = fd >= 0;
	if (!is_peer)
		fd = open(place, O_WRONLY | O_CREAT, 0600);
	if (fd < 0)
		fail(place);
	for (unsigned long i = 0; i < mib; i++) {
		for (size_t b = 0; b < CHUNK_BLOCKS; b++)
			content_fill(chunk + b * (BLOCK / sizeof *chunk), i * CHUNK_BLOCKS + b, generation);
		content_add(&sum, chunk, MIB);
		write_all(fd, chunk, MIB);
	}
	settle(fd, is_peer, content_sum(&sum));
	io_end();
	return content_sum(&sum);
}

/* What copying costs beside the device: the same work on nothing. */
uint64_t copy_nothing(const char *place, unsigned long mib)
{
	uint64_t *chunk = pages(MIB);
	struct sum sum = { 0, 0 };

	(void)place;
	io_start();
	for (unsigned long i = 0; i < mib; i++) {
		for (size_t b = 0; b < CHUNK_BLOCKS; b++)
			content_fill(chunk + b * (BLOCK / sizeof *chunk), i * CHUNK_BLOCKS + b, 0);
		content_add(&sum, chunk, MIB);
	}
	io_end();
	return content_sum(&sum);
}
