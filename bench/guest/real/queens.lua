-- Queens on a board, sieved primes and built strings: tables, calls, closures; so many times.
local function queens(size)
  local columns, down, up, found = {}, {}, {}, 0
  local function place(row)
    if row > size then
      found = found + 1
      return
    end
    for column = 1, size do
      if not (columns[column] or down[row + column] or up[row - column]) then
        columns[column], down[row + column], up[row - column] = true, true, true
        place(row + 1)
        columns[column], down[row + column], up[row - column] = nil, nil, nil
      end
    end
  end
  place(1)
  return found
end

for _ = 1, tonumber(arg[1]) do
  local composite, primes = {}, {}
  for n = 2, 20000 do
    if not composite[n] then
      primes[#primes + 1] = n
      for multiple = n * n, 20000, n do
        composite[multiple] = true
      end
    end
  end

  local words = {}
  for i, prime in ipairs(primes) do
    words[i] = string.format("%x", prime):reverse()
  end
  table.sort(words)
  print(queens(7), #primes, #table.concat(words), words[100])
end
