/* Several processes: made and ended, and switched between. */
#define _GNU_SOURCE
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench.h"

/* Waits for a child and gives its exit status. */
static uint64_t status_of(pid_t child)
{
	int status;

	if (child < 0 || waitpid(child, &status, 0) != child || !WIFEXITED(status))
		fail("fork");
	return (uint64_t)WEXITSTATUS(status);
}

static uint64_t fork_unit(void)
{
	uint64_t sum = 0;

	for (int i = 0; i < 8; i++) {
		pid_t child = fork();

		if (!child)
			_exit(i);
		sum += status_of(child);
	}
	return sum;
}

static uint64_t exec_unit(void)
{
	uint64_t sum = 0;

	for (int i = 0; i < 4; i++) {
		pid_t child = fork();

		if (!child) {
			execl("/proc/self/exe", "bench", "nothing", (char *)NULL);
			_exit(1);
		}
		sum += status_of(child);
	}
	return sum;
}

/* A ring of processes, each of which hands on every byte that it is handed. */

static int ring_in, ring_out;

static void hand_on(int in, int out)
{
	uint8_t token;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	while (read(in, &token, 1) == 1) {
		token++;
		if (write(out, &token, 1) != 1)
			break;
	}
	_exit(0);
}

static void make_ring(int members)
{
	int first[2], in, out[2];

	if (pipe(first))
		fail("pipe");
	in = first[0];
	for (int i = 1; i < members; i++) {
		pid_t child;

		if (pipe(out))
			fail("pipe");
		child = fork();
		if (child < 0)
			fail("fork");
		if (!child)
			hand_on(in, out[1]);
		in = out[0];
	}
	ring_in = in;
	ring_out = first[1];
}

static uint64_t laps(int count)
{
	uint64_t sum = 0;

	for (int i = 0; i < count; i++) {
		uint8_t token = (uint8_t)i;

		if (write(ring_out, &token, 1) != 1 || read(ring_in, &token, 1) != 1)
			fail("pipe");
		sum += token;
	}
	return sum;
}

static void pair_setup(void)
{
	make_ring(2);
}

static uint64_t pair_unit(void)
{
	return laps(200);
}

static void sixty_four_setup(void)
{
	make_ring(64);
}

static uint64_t sixty_four_unit(void)
{
	return laps(6);
}

static void eight_setup(void)
{
	make_ring(8);
}

static uint64_t eight_unit(void)
{
	return laps(50);
}

/* A shell script that starts a thousand programs, one after the other. */

static char shell[256];

static void shell_setup(void)
{
	ssize_t length = readlink("/proc/self/exe", shell, sizeof shell - 16);
	char *name = length < 0 ? NULL : memrchr(shell, '/', (size_t)length);

	if (!name)
		fail("/proc/self/exe");
	strcpy(name + 1, "busybox");
	if (access(shell, X_OK))
		lacks("busybox");
}

static uint64_t shell_unit(void)
{
	static const char script[] =
		"i=0; while [ $i -lt 1000 ]; do \"$0\" true || exit 1; i=$((i+1)); done; exit 42";
	pid_t child = fork();

	if (!child) {
		execl(shell, "sh", "-c", script, shell, (char *)NULL);
		_exit(1);
	}
	return status_of(child);
}

const struct program process_programs[] = {
	{ "fork", "kernel", NULL, fork_unit },
	{ "fork-exec", "kernel", NULL, exec_unit },
	{ "pipe", "kernel", pair_setup, pair_unit },
	{ "switch-8", "kernel", eight_setup, eight_unit },
	{ "switch-64", "kernel", sixty_four_setup, sixty_four_unit },
	{ "shell-1000", "kernel", shell_setup, shell_unit },
	{ 0 },
};
