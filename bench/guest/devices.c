/* The devices of a machine whose kernel has their drivers as modules: loaded, and the network's address set. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <fcntl.h>
#include <net/if.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "bench.h"

#define MODULES "/modules"
/* What a user-mode network expects its guest to be. */
#define ADDRESS 0x0a00020f
#define NETMASK 0xffffff00
/* How long a driver may take to find its device: so many times a hundredth of a second. */
#define PATIENCE 200

/* Loads every module that the archive brought; their names are in an order in which that works. */
static void load_modules(void)
{
	struct dirent **items;
	int count = scandir(MODULES, &items, NULL, alphasort);

	for (int i = 0; i < count; i++) {
		char path[sizeof MODULES + 257];
		int fd;

		snprintf(path, sizeof path, MODULES "/%s", items[i]->d_name);
		fd = open(path, O_RDONLY);
		if (fd >= 0)
			syscall(SYS_finit_module, fd, "", 0);
		close(fd);
	}
}

static void set(int fd, unsigned long what, struct ifreq *request, uint32_t address)
{
	struct sockaddr_in *in = (struct sockaddr_in *)&request->ifr_addr;

	*in = (struct sockaddr_in){ .sin_family = AF_INET, .sin_addr = { htonl(address) } };
	ioctl(fd, what, request);
}

/* Gives the adapter its address. Who has none, finds no peer. */
static void network_up(void)
{
	struct ifreq request = { .ifr_name = "eth0" };
	int fd = socket(AF_INET, SOCK_DGRAM, 0);

	set(fd, SIOCSIFADDR, &request, ADDRESS);
	set(fd, SIOCSIFNETMASK, &request, NETMASK);
	request.ifr_flags = IFF_UP | IFF_RUNNING;
	ioctl(fd, SIOCSIFFLAGS, &request);
	close(fd);
}

void devices_up(void)
{
	load_modules();
	network_up();
}

void wait_for_device(const char *path)
{
	const struct timespec pause = { .tv_nsec = 10 * 1000 * 1000 };

	for (int i = 0; !strncmp(path, "/dev/", 5) && i < PATIENCE && access(path, F_OK); i++)
		nanosleep(&pause, NULL);
}
