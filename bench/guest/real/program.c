/*
 * What the compiler compiles: a little of everything that its optimizer likes to look at. For more of it, this is included
 * many times, each with another COPY, which is part of all names then.
 */
#define JOIN(name, copy) name##_##copy
#define NAME(name, copy) JOIN(name, copy)
#define list NAME(list, COPY)
#define table NAME(table, COPY)
#define lookup NAME(lookup, COPY)
#define merge NAME(merge, COPY)
#define sort NAME(sort, COPY)
#define multiply NAME(multiply, COPY)
#define evaluate NAME(evaluate, COPY)
#define prime_count NAME(prime_count, COPY)

typedef unsigned long size_t;

struct list {
	struct list *next;
	int key;
	double weight;
};

static int table[256];

int lookup(const unsigned char *text, size_t length)
{
	int state = 0;

	for (size_t i = 0; i < length; i++)
		state = table[(state ^ text[i]) & 255] + (state >> 3);
	return state;
}

struct list *merge(struct list *a, struct list *b)
{
	struct list head = { 0 }, *last = &head;

	while (a && b) {
		struct list **least = a->key <= b->key ? &a : &b;

		last = last->next = *least;
		*least = (*least)->next;
	}
	last->next = a ? a : b;
	return head.next;
}

struct list *sort(struct list *all)
{
	struct list *slow = all, *fast;

	if (!all || !all->next)
		return all;
	for (fast = all->next; fast && fast->next; fast = fast->next->next)
		slow = slow->next;
	fast = slow->next;
	slow->next = 0;
	return merge(sort(all), sort(fast));
}

void multiply(int n, double (*restrict c)[n], double (*a)[n], double (*b)[n])
{
	for (int i = 0; i < n; i++)
		for (int j = 0; j < n; j++) {
			double sum = 0;

			for (int k = 0; k < n; k++)
				sum += a[i][k] * b[k][j];
			c[i][j] = sum;
		}
}

long evaluate(const int *code, long *stack)
{
	for (;;) {
		switch (*code++) {
		case 0: return *stack;
		case 1: *++stack = *code++; break;
		case 2: stack[-1] += *stack; stack--; break;
		case 3: stack[-1] *= *stack; stack--; break;
		case 4: stack[-1] = *stack ? stack[-1] / *stack : 0; stack--; break;
		case 5: code += *stack-- ? *code : 1; break;
		case 6: stack[1] = *stack; stack++; break;
		default: return -1;
		}
	}
}

unsigned prime_count(unsigned limit)
{
	unsigned count = 0;

	for (unsigned n = 2; n < limit; n++) {
		unsigned d = 2;

		while (d * d <= n && n % d)
			d++;
		count += d * d > n;
	}
	return count;
}
