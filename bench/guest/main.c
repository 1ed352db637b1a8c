/*
 * The driver: obeys lines on standard input and answers with marker lines, which the host times as they arrive.
 *
 *	run NAME COUNT	-> "@ start", COUNT units, "@ end", then "@ sum CHECKSUM" or "@ error WHAT"
 *	io NAME COUNT PLACE -> the same with a way to move data, to or from a place
 *	quit		-> the end; of the machine, if this is its init
 *
 * "@ start" is short enough for one filling of a serial port's FIFO, so that sending it does not go on while the work
 * is being done. Each run is a child of its own, so that what dies says so and leaves nothing behind.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include "bench.h"

static const struct program *const classes[] = {
	integer_programs, vector_programs, memory_programs, kernel_programs, process_programs,
	socket_programs,  code_programs,   real_programs,
};

#define CLASSES (sizeof classes / sizeof *classes)

void say(const char *line)
{
	size_t length = strlen(line);

	if (write(STDOUT_FILENO, line, length) != (ssize_t)length)
		_exit(1);
}

void fail(const char *what)
{
	char line[160];

	snprintf(line, sizeof line, "@ error %s: %s\n", what, strerror(errno));
	say(line);
	_exit(1);
}

void lacks(const char *what)
{
	char line[160];

	snprintf(line, sizeof line, "@ error no %s\n", what);
	say(line);
	_exit(1);
}

void *pages(size_t bytes)
{
	void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED)
		fail("mmap");
	return memory;
}

static const struct program *find(const char *name)
{
	for (size_t i = 0; i < CLASSES; i++)
		for (const struct program *p = classes[i]; p->name; p++)
			if (!strcmp(p->name, name))
				return p;
	return NULL;
}

static void list(void)
{
	for (size_t i = 0; i < CLASSES; i++)
		for (const struct program *p = classes[i]; p->name; p++)
			printf("%s %s\n", p->class, p->name);
}

/* What is to be done. */
struct order {
	const char *name, *place;
	unsigned long count;
};

static uint64_t repeat(const struct program *program, unsigned long count)
{
	uint64_t sum;

	if (program->setup)
		program->setup();
	say("@ start\n");
	sum = program->unit();
	while (--count)
		if (program->unit() != sum)
			lacks("constant checksum");
	say("@ end\n");
	return sum;
}

static uint64_t move_data(const struct order *order)
{
	io_function *way = find_io(order->name);

	if (!way)
		lacks("such way");
	wait_for_device(order->place);
	return way(order->place, order->count);
}

/* The child: does the work. */
static void work(const struct order *order)
{
	const struct program *program = find(order->name);
	uint64_t sum;
	char line[64];

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (!order->place && !program)
		lacks("such program");
	sum = order->place ? move_data(order) : repeat(program, order->count);
	snprintf(line, sizeof line, "@ sum %016llx\n", (unsigned long long)sum);
	say(line);
	_exit(0);
}

static void run(const struct order *order)
{
	char line[64];
	int status;
	pid_t child = fork();

	if (!child)
		work(order);
	if (child < 0 || waitpid(child, &status, 0) < 0)
		fail("fork");
	if (WIFSIGNALED(status)) {
		snprintf(line, sizeof line, "@ error died of signal %d\n", WTERMSIG(status));
		say(line);
	}
}

/* Reads a line, byte by byte: a child must not inherit what was read ahead. */
static int read_line(char *line, size_t size)
{
	size_t length = 0;

	while (length + 1 < size && read(STDIN_FILENO, line + length, 1) == 1) {
		if (line[length] == '\n') {
			line[length] = 0;
			return 1;
		}
		length++;
	}
	return 0;
}

static void obey(void)
{
	char line[192], name[64], place[96];
	unsigned long count;

	say("@ ready\n");
	while (read_line(line, sizeof line) && strcmp(line, "quit"))
		if (sscanf(line, "run %63s %lu", name, &count) == 2 && count)
			run(&(struct order){ .name = name, .count = count });
		else if (sscanf(line, "io %63s %lu %95s", name, &count, place) == 3 && count)
			run(&(struct order){ .name = name, .place = place, .count = count });
		else
			say("@ error no such order\n");
}

/* The loopback interface has to be brought up by somebody. */
static void loopback_up(void)
{
	struct ifreq request = { .ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING };
	int fd = socket(AF_INET, SOCK_DGRAM, 0);

	if (fd >= 0) {
		ioctl(fd, SIOCSIFFLAGS, &request);
		close(fd);
	}
}

/* What an init does: file systems, the console without echo or processing of output, the network. */
static void be_init(void)
{
	struct termios console;

	mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
	mount("proc", "/proc", "proc", 0, NULL);
	mount("sysfs", "/sys", "sysfs", 0, NULL);
	mkdir(SCRATCH, 0777);
	mount("tmpfs", SCRATCH, "tmpfs", 0, NULL);
	mount("tmpfs", "/tmp", "tmpfs", 0, NULL);
	loopback_up();
	devices_up();
	if (!tcgetattr(STDIN_FILENO, &console)) {
		console.c_lflag &= ~(tcflag_t)(ECHO | ISIG);
		console.c_oflag &= ~(tcflag_t)OPOST;
		tcsetattr(STDIN_FILENO, TCSANOW, &console);
	}
}

int main(int argc, char **argv)
{
	int init = getpid() == 1;

	/* What fork-exec executes. */
	if (argc == 2 && !strcmp(argv[1], "nothing"))
		return 0;
	if (argc == 2 && !strcmp(argv[1], "list")) {
		list();
		return 0;
	}
	if (init)
		be_init();
	obey();
	if (init)
		reboot(RB_POWER_OFF);
	return 0;
}
