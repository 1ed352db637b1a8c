/*
 * Debian's programs on fixed inputs: a unit is a process from its birth to its end, and its checksum that of what it
 * writes. They and their libraries are in the same root directory everywhere; it has the inputs in /bench.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <glob.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench.h"

#define TEXT SCRATCH "/bench-text"
#define PACKED SCRATCH "/bench-packed"
#define TEXT_SIZE 200000

/* Starts a program with that output. */
static pid_t start(char *const argv[], int output)
{
	static char *const environment[] = { "PATH=/usr/bin:/bin", "LC_ALL=C", "HOME=/", NULL };
	pid_t child = fork();

	if (child < 0)
		fail("fork");
	if (!child) {
		dup2(output, STDOUT_FILENO);
		execve(argv[0], argv, environment);
		_exit(127);
	}
	return child;
}

/* Waits for it to succeed. */
static void finish(pid_t child, const char *name)
{
	int status;

	if (waitpid(child, &status, 0) != child)
		fail("waitpid");
	if (WIFEXITED(status) && WEXITSTATUS(status) == 127)
		lacks(name);
	if (status)
		lacks("success");
}

/* Runs a program; gives the checksum of its output. */
static uint64_t output_of(char *const argv[])
{
	unsigned char buffer[16384];
	uint64_t sum = 0;
	ssize_t count;
	int out[2];
	pid_t child;

	if (pipe2(out, O_CLOEXEC))
		fail("pipe");
	child = start(argv, out[1]);
	close(out[1]);
	/* Byte by byte, since the pieces in which it arrives are chance. */
	while ((count = read(out[0], buffer, sizeof buffer)) > 0)
		for (ssize_t i = 0; i < count; i++)
			sum = mix(sum, buffer[i]);
	close(out[0]);
	finish(child, argv[0]);
	return sum;
}

#define RUN(...) output_of((char *[]){ __VA_ARGS__, NULL })

static uint64_t python_unit(void)
{
	return RUN("/usr/bin/python3", "-S", "/bench/words.py");
}

static uint64_t perl_unit(void)
{
	return RUN("/usr/bin/perl", "/bench/words.pl");
}

static uint64_t lua_unit(void)
{
	return RUN("/usr/bin/lua5.4", "/bench/queens.lua");
}

static uint64_t sqlite_unit(void)
{
	return RUN("/usr/bin/sqlite3", "-batch", "-init", "/bench/orders.sql", ":memory:", "");
}

/* A text of words, some of them frequent, for what packs and digests. */
static void text_setup(void)
{
	static char text[TEXT_SIZE];
	uint64_t state = 21;
	size_t at = 0;
	int fd;

	while (at < TEXT_SIZE) {
		uint64_t word = next_random(&state) % 1000, letters = (word * word / 1000 + 7) * 0x9e3779b97f4a7c15u;

		for (size_t length = 2 + letters % 7; length && at + 1 < TEXT_SIZE; length--) {
			letters = letters >> 5 | letters << 59;
			text[at++] = (char)('a' + letters % 26);
		}
		text[at++] = word % 11 ? ' ' : '\n';
	}
	fd = open(TEXT, O_CREAT | O_TRUNC | O_WRONLY, 0600);
	if (fd < 0 || write(fd, text, TEXT_SIZE) != TEXT_SIZE)
		fail(TEXT);
	close(fd);
}

static char *const xz[] = { "/usr/bin/xz", "-c", "-T1", "-2", TEXT, NULL };

static uint64_t xz_unit(void)
{
	return output_of(xz);
}

static void packed_setup(void)
{
	int fd = open(PACKED, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0600);

	if (fd < 0)
		fail(PACKED);
	text_setup();
	finish(start(xz, fd), xz[0]);
	close(fd);
}

static uint64_t unxz_unit(void)
{
	return RUN("/usr/bin/xz", "-d", "-c", PACKED);
}

static uint64_t zstd_unit(void)
{
	return RUN("/usr/bin/zstd", "-q", "-c", "--single-thread", "-9", TEXT);
}

static uint64_t digest_unit(void)
{
	return RUN("/usr/bin/openssl", "dgst", "-sha256", TEXT);
}

static uint64_t cipher_unit(void)
{
	return RUN("/usr/bin/openssl", "enc", "-aes-256-cbc", "-nosalt", "-K", "00010203", "-iv", "04050607", "-in",
		   TEXT);
}

/* Whether the Mersenne number 2^1279 - 1 is prime: long numbers, in OpenSSL's assembly. */
static uint64_t prime_unit(void)
{
	char number[322] = "7";

	memset(number + 1, 'F', 319);
	return RUN("/usr/bin/openssl", "prime", "-hex", number);
}

static char compiler[256];

/* The compiler proper is in a directory named for its version, of one of two kinds. */
static void compiler_setup(void)
{
	glob_t found;

	if (glob("/usr/lib*/gcc/x86_64-linux-gnu/*/cc1", 0, NULL, &found))
		lacks("cc1");
	snprintf(compiler, sizeof compiler, "%s", found.gl_pathv[0]);
	globfree(&found);
}

static uint64_t compiler_unit(void)
{
	return RUN(compiler, "-quiet", "-ffreestanding", "-O2", "/bench/program.c", "-o", "-");
}

const struct program real_programs[] = {
	{ "python3", "real", NULL, python_unit },
	{ "perl", "real", NULL, perl_unit },
	{ "lua", "real", NULL, lua_unit },
	{ "sqlite", "real", NULL, sqlite_unit },
	{ "xz", "real", text_setup, xz_unit },
	{ "unxz", "real", packed_setup, unxz_unit },
	{ "zstd", "real", text_setup, zstd_unit },
	{ "openssl-digest", "real", text_setup, digest_unit },
	{ "openssl-cipher", "real", text_setup, cipher_unit },
	{ "openssl-prime", "real", NULL, prime_unit },
	{ "cc1", "real", compiler_setup, compiler_unit },
	{ 0 },
};
