/*
 * Debian's programs on fixed inputs: a unit is a process from its birth to its end, and its checksum that of what it
 * writes. They and their libraries are in the same root directory everywhere; it has the inputs in /bench. Each is there
 * twice: with work for some hundred milliseconds (real), and with so little that half of it is to be started (short).
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <glob.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench.h"

/* Texts, and the names of their packed forms. */
#define TEXT SCRATCH "/bench-text"
#define LONG_TEXT SCRATCH "/bench-long-text"
#define VAST_TEXT SCRATCH "/bench-vast-text"
#define PACKED ".xz"
#define TEXT_SIZE 200000
#define LONG_TEXT_SIZE 4000000
/* So many times the long one. */
#define VAST 12
/* The compiler's larger input. */
#define SOURCE SCRATCH "/bench-source.c"

#define XZ "/usr/bin/xz"
#define OPENSSL "/usr/bin/openssl"

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

/*
 * Runs a program; gives the checksum of its output. That goes to a file: a reader of a pipe would run beside it where there is
 * a second processor, and in turn with it where there is not.
 */
static uint64_t output_of(char *const argv[])
{
	static uint64_t buffer[8192];
	int out = open(SCRATCH, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	uint64_t sum = 0;
	ssize_t count;

	if (out < 0)
		fail("open");
	finish(start(argv, out), argv[0]);
	if (lseek(out, 0, SEEK_SET))
		fail("lseek");
	while ((count = read(out, buffer, sizeof buffer)) > 0) {
		memset((char *)buffer + count, 0, -count & 7);
		for (ssize_t i = 0; i < (count + 7) / 8; i++)
			sum = mix(sum, buffer[i]);
	}
	close(out);
	return sum;
}

#define RUN(...) output_of((char *[]){ __VA_ARGS__, NULL })

/* Both sizes of a program: what is done in a few milliseconds, and in a few hundred. */
#define SIZES(name, small, large)                                                                                      \
	static uint64_t short_##name(void)                                                                             \
	{                                                                                                              \
		return name(small);                                                                                    \
	}                                                                                                              \
	static uint64_t long_##name(void)                                                                              \
	{                                                                                                              \
		return name(large);                                                                                    \
	}

static uint64_t python(char *rounds)
{
	return RUN("/usr/bin/python3", "-S", "/bench/words.py", rounds);
}
SIZES(python, "1", "24")

static uint64_t perl(char *rounds)
{
	return RUN("/usr/bin/perl", "/bench/words.pl", rounds);
}
SIZES(perl, "1", "60")

static uint64_t lua(char *rounds)
{
	return RUN("/usr/bin/lua5.4", "/bench/queens.lua", rounds);
}
SIZES(lua, "1", "60")

static uint64_t sqlite(char *customers)
{
	char parameter[64];

	snprintf(parameter, sizeof parameter, ".parameter set @customers %s", customers);
	return RUN("/usr/bin/sqlite3", "-batch", ":memory:", parameter, ".read /bench/orders.sql");
}
SIZES(sqlite, "500", "12000")

/* A text of words, some of them frequent, for what packs and digests. */
static void write_text(const char *name, size_t size, int times)
{
	char *text = pages(size);
	uint64_t state = 21;
	size_t at = 0;
	int fd;

	while (at < size) {
		uint64_t word = next_random(&state) % 1000, letters = (word * word / 1000 + 7) * 0x9e3779b97f4a7c15u;

		for (size_t length = 2 + letters % 7; length && at + 1 < size; length--) {
			letters = letters >> 5 | letters << 59;
			text[at++] = (char)('a' + letters % 26);
		}
		text[at++] = word % 11 ? ' ' : '\n';
	}
	fd = open(name, O_CREAT | O_TRUNC | O_WRONLY, 0600);
	if (fd < 0)
		fail(name);
	while (times--)
		if (write(fd, text, size) != (ssize_t)size)
			fail(name);
	close(fd);
}

static void texts(void)
{
	write_text(TEXT, TEXT_SIZE, 1);
	write_text(LONG_TEXT, LONG_TEXT_SIZE, 1);
	write_text(VAST_TEXT, LONG_TEXT_SIZE, VAST);
}

static void packed_texts(void)
{
	texts();
	finish(start((char *[]){ XZ, "-kf", "-T1", "-1", TEXT, LONG_TEXT, NULL }, STDOUT_FILENO), XZ);
}

static uint64_t short_xz(void)
{
	return RUN(XZ, "-c", "-T1", "-2", TEXT);
}

static uint64_t long_xz(void)
{
	return RUN(XZ, "-c", "-T1", "-0", LONG_TEXT);
}

static uint64_t short_unxz(void)
{
	return RUN(XZ, "-d", "-c", TEXT PACKED);
}

static uint64_t long_unxz(void)
{
	return RUN(XZ, "-d", "-c", LONG_TEXT PACKED, LONG_TEXT PACKED, LONG_TEXT PACKED);
}

static uint64_t zstd(char *text)
{
	return RUN("/usr/bin/zstd", "-q", "-c", "--single-thread", "-9", text);
}
SIZES(zstd, TEXT, LONG_TEXT)

static uint64_t digest(char *text)
{
	return RUN(OPENSSL, "dgst", "-sha256", text);
}
SIZES(digest, TEXT, VAST_TEXT)

static uint64_t cipher(char *text)
{
	return RUN(OPENSSL, "enc", "-aes-256-cbc", "-nosalt", "-K", "00010203", "-iv", "04050607", "-in", text);
}
SIZES(cipher, TEXT, VAST_TEXT)

/* Whether the Mersenne number 2^exponent - 1 is prime: long numbers, in OpenSSL's assembly. */
static uint64_t mersenne(size_t exponent)
{
	char number[1200] = "";

	number[0] = "0137"[exponent % 4];
	memset(number + 1, 'F', exponent / 4);
	return RUN(OPENSSL, "prime", "-hex", number);
}
SIZES(mersenne, 1279, 2203)

static char compiler[256];

/* The compiler proper is in a directory named for its version, of one of two kinds; and it has much to compile. */
static void compiler_setup(void)
{
	FILE *source = fopen(SOURCE, "w");
	glob_t found;

	if (glob("/usr/lib*/gcc/x86_64-linux-gnu/*/cc1", 0, NULL, &found))
		lacks("cc1");
	snprintf(compiler, sizeof compiler, "%s", found.gl_pathv[0]);
	globfree(&found);
	if (!source)
		fail(SOURCE);
	for (int copy = 0; copy < 16; copy++)
		fprintf(source, "#undef COPY\n#define COPY %d\n#include \"/bench/program.c\"\n", copy);
	fclose(source);
}

static uint64_t compile(char *source)
{
	return RUN(compiler, "-quiet", "-ffreestanding", "-O2", source, "-o", "-");
}
SIZES(compile, "/bench/program.c", SOURCE)

const struct program real_programs[] = {
	{ "python3", "real", NULL, long_python },
	{ "perl", "real", NULL, long_perl },
	{ "lua", "real", NULL, long_lua },
	{ "sqlite", "real", NULL, long_sqlite },
	{ "xz", "real", texts, long_xz },
	{ "unxz", "real", packed_texts, long_unxz },
	{ "zstd", "real", texts, long_zstd },
	{ "openssl-digest", "real", texts, long_digest },
	{ "openssl-cipher", "real", texts, long_cipher },
	{ "openssl-prime", "real", NULL, long_mersenne },
	{ "cc1", "real", compiler_setup, long_compile },
	{ "python3-short", "short", NULL, short_python },
	{ "perl-short", "short", NULL, short_perl },
	{ "lua-short", "short", NULL, short_lua },
	{ "sqlite-short", "short", NULL, short_sqlite },
	{ "xz-short", "short", texts, short_xz },
	{ "unxz-short", "short", packed_texts, short_unxz },
	{ "zstd-short", "short", texts, short_zstd },
	{ "openssl-digest-short", "short", texts, short_digest },
	{ "openssl-cipher-short", "short", texts, short_cipher },
	{ "openssl-prime-short", "short", NULL, short_mersenne },
	{ "cc1-short", "short", compiler_setup, short_compile },
	{ 0 },
};
