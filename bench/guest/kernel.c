/* The kernel's services within one process: system calls, page tables, signals, files in memory. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "bench.h"

#define PAGE 4096

/* A system call that does next to nothing. */
static uint64_t syscall_unit(void)
{
	uint64_t calls = 0;

	while (calls < 5000)
		calls += syscall(SYS_getppid) >= 0;
	return calls;
}

/* The time, as programs ask for it: through the vDSO where there is one. */
static uint64_t clock_unit(void)
{
	struct timespec last = { 0, 0 }, now;
	uint64_t forward = 0;

	for (int i = 0; i < 10000; i++) {
		if (clock_gettime(CLOCK_MONOTONIC, &now))
			fail("clock_gettime");
		forward += now.tv_sec > last.tv_sec || (now.tv_sec == last.tv_sec && now.tv_nsec >= last.tv_nsec);
		last = now;
	}
	return forward;
}

/* Page faults: each page of a new mapping, touched once. */
static uint64_t page_fault_unit(void)
{
	const size_t size = 1000 * PAGE;
	uint8_t *memory = pages(size);
	uint64_t sum = 0;

	for (size_t i = 0; i < size; i += PAGE)
		sum += ++memory[i];
	if (munmap(memory, size))
		fail("munmap");
	return sum;
}

/* Mapping and unmapping a few pages, one of them used. */
static uint64_t mmap_unit(void)
{
	uint64_t sum = 0;

	for (int i = 0; i < 500; i++) {
		uint8_t *memory = pages(4 * PAGE);

		sum += ++memory[PAGE];
		if (munmap(memory, 4 * PAGE))
			fail("munmap");
	}
	return sum;
}

/* Changing the protection of a page in use. */

static uint8_t *protected_page;

static void mprotect_setup(void)
{
	protected_page = pages(PAGE);
}

static uint64_t mprotect_unit(void)
{
	uint64_t sum = 0;

	for (int i = 0; i < 1000; i++) {
		*protected_page = (uint8_t)i;
		if (mprotect(protected_page, PAGE, PROT_READ))
			fail("mprotect");
		sum += *protected_page;
		if (mprotect(protected_page, PAGE, PROT_READ | PROT_WRITE))
			fail("mprotect");
	}
	return sum;
}

/* A signal to oneself: delivery and return. */

static volatile sig_atomic_t signals;

static void count_signal(int number)
{
	(void)number;
	signals++;
}

static void signal_setup(void)
{
	struct sigaction action = { .sa_handler = count_signal };

	if (sigaction(SIGUSR1, &action, NULL))
		fail("sigaction");
}

static uint64_t signal_unit(void)
{
	signals = 0;
	for (int i = 0; i < 1000; i++)
		raise(SIGUSR1);
	return (uint64_t)signals;
}

/* Making, writing and deleting small files. */
static uint64_t create_unit(void)
{
	char path[64];
	uint64_t sum = 0;

	for (int i = 0; i < 200; i++) {
		int fd;

		snprintf(path, sizeof path, SCRATCH "/bench-%d-%d", getpid(), i);
		fd = open(path, O_CREAT | O_EXCL | O_WRONLY, 0600);
		if (fd < 0 || write(fd, path, 16) != 16)
			fail(path);
		close(fd);
		sum += unlink(path) == 0;
	}
	return sum;
}

/* Reading a file in memory, page by page. */

#define FILE_SIZE (1 << 20)

static int file;

static void read_setup(void)
{
	char path[64], buffer[PAGE];

	snprintf(path, sizeof path, SCRATCH "/bench-%d", getpid());
	file = open(path, O_CREAT | O_EXCL | O_RDWR, 0600);
	if (file < 0 || unlink(path))
		fail(path);
	for (int i = 0; i < FILE_SIZE / PAGE; i++) {
		memset(buffer, i, sizeof buffer);
		if (write(file, buffer, sizeof buffer) != sizeof buffer)
			fail(path);
	}
}

static uint64_t read_unit(void)
{
	char buffer[PAGE];
	uint64_t sum = 0;

	for (int pass = 0; pass < 4; pass++) {
		if (lseek(file, 0, SEEK_SET))
			fail("lseek");
		while (read(file, buffer, sizeof buffer) == sizeof buffer)
			sum += (uint8_t)buffer[17];
	}
	return sum;
}

const struct program kernel_programs[] = {
	{ "syscall", "kernel", NULL, syscall_unit },
	{ "clock", "kernel", NULL, clock_unit },
	{ "page-fault", "kernel", NULL, page_fault_unit },
	{ "mmap", "kernel", NULL, mmap_unit },
	{ "mprotect", "kernel", mprotect_setup, mprotect_unit },
	{ "signal", "kernel", signal_setup, signal_unit },
	{ "file-create", "kernel", NULL, create_unit },
	{ "file-read", "kernel", read_setup, read_unit },
	{ 0 },
};
