# Counting made-up words, sorting them, and some arithmetic, so many times: dictionaries, strings, long integers, generators.
import sys

state = 12345


def word():
    global state
    letters = []
    for _ in range(3):
        state = (state * 1103515245 + 12345) % 2**31
        letters.append(chr(97 + state // 65536 % 26))
    return "".join(letters)


class Counter:
    def __init__(self):
        self.counts = {}

    def add(self, item):
        self.counts[item] = self.counts.get(item, 0) + 1


for _ in range(int(sys.argv[1])):
    counter = Counter()
    for _ in range(4000):
        counter.add(word())
    common = sorted(counter.counts.items(), key=lambda item: (-item[1], item[0]))
    print(common[:5], len(common))
    print(sum(n * n for n in range(20000) if n % 3), 3**500 % 10**9)
    print(" ".join(w.upper()[::-1] for w, _ in common[:200]).count("A"))
