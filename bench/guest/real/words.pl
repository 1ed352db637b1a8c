# Taking a made-up text apart: regular expressions, hashes, sorting; so many times.
use strict;
use warnings;

my $state = 99;
for my $round (1 .. shift) {
    my $text = "";
    for (1 .. 6000) {
        $state = ($state * 69069 + 1) % 4294967296;
        $text .= chr(97 + ($state >> 16) % 26) . ($state >> 24 & 7 ? "" : " ");
    }
    $text x= 4;
    my (%count, $pairs);
    $count{$1}++ while $text =~ /\b(\w+)\b/g;
    $pairs++ while $text =~ /([aeiou])[^aeiou ]+?\1/g;
    (my $changed = $text) =~ s/(\w)(\w)/$2$1/g;
    my @words = sort { $count{$b} <=> $count{$a} || $a cmp $b } keys %count;
    print scalar(@words), " $pairs ", join(",", @words[0 .. 9]), " ", substr($changed, 100, 40), "\n";
}
