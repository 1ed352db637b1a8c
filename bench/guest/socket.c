/* TCP over the loopback interface, between two processes. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "bench.h"

static int peer;

/* A connection to a child that lives in `serve`. */
static void connect_to(void (*serve)(int))
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr = { htonl(INADDR_LOOPBACK) } };
	socklen_t size = sizeof address;
	int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1;
	pid_t child;

	if (listener < 0 || bind(listener, (struct sockaddr *)&address, size) || listen(listener, 1) ||
	    getsockname(listener, (struct sockaddr *)&address, &size))
		fail("socket");
	child = fork();
	if (child < 0)
		fail("fork");
	if (!child) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		peer = accept(listener, NULL, NULL);
		setsockopt(peer, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
		serve(peer);
		_exit(0);
	}
	peer = socket(AF_INET, SOCK_STREAM, 0);
	if (peer < 0 || connect(peer, (struct sockaddr *)&address, size))
		fail("connect");
	setsockopt(peer, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

/* A question and an answer of 64 bytes. */

#define MESSAGE 64

static void answer(int fd)
{
	uint8_t message[MESSAGE];

	while (recv(fd, message, MESSAGE, MSG_WAITALL) == MESSAGE) {
		message[0]++;
		if (write(fd, message, MESSAGE) != MESSAGE)
			return;
	}
}

static void latency_setup(void)
{
	connect_to(answer);
}

static uint64_t latency_unit(void)
{
	uint8_t message[MESSAGE] = { 0 };
	uint64_t sum = 0;

	for (int i = 0; i < 100; i++) {
		message[0] = (uint8_t)i;
		if (write(peer, message, MESSAGE) != MESSAGE || recv(peer, message, MESSAGE, MSG_WAITALL) != MESSAGE)
			fail("TCP");
		sum += message[0];
	}
	return sum;
}

/* A megabyte one way, and a byte back when all of it is there. */

#define STREAM (1 << 20)
#define CHUNK 32768

static void swallow(int fd)
{
	static uint8_t buffer[CHUNK];
	size_t total = 0;
	ssize_t got;

	while ((got = read(fd, buffer, CHUNK)) > 0) {
		total = (total + (size_t)got) % STREAM;
		if (!total && write(fd, buffer + got - 1, 1) != 1)
			return;
	}
}

static void stream_setup(void)
{
	connect_to(swallow);
}

static uint64_t stream_unit(void)
{
	static uint8_t buffer[CHUNK];
	uint8_t answer;

	memset(buffer, 42, sizeof buffer);
	for (int sent = 0; sent < STREAM; sent += CHUNK)
		if (write(peer, buffer, CHUNK) != CHUNK)
			fail("TCP");
	if (read(peer, &answer, 1) != 1)
		fail("TCP");
	return answer;
}

const struct program socket_programs[] = {
	{ "tcp-latency", "kernel", latency_setup, latency_unit },
	{ "tcp-stream", "kernel", stream_setup, stream_unit },
	{ 0 },
};
