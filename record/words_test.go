package record

import (
	"strings"
	"testing"
)

func TestWords(t *testing.T) {
	t.Parallel()
	h := Hash{0xe5, 0x82, 0x94, 0xf2, 0xe9, 0xa2, 0x27, 0x48, 0x6e, 0x8b, 0x06, 0x1b, 0x31, 0xcc, 0x52, 0x8f, 0xd7, 0xfa, 0x3f, 0x19}
	want := "topmost Istanbul Pluto vagabond treadmill Pacific brackish dictator goldfish Medusa afflict bravado chatter revolver Dupont midsummer stopwatch whimsical cowbell bottomless" + strings.Repeat(" aardvark adroitness", 6)
	if got := strings.Join(Words(h), " "); got != want {
		t.Errorf("got %s", got)
	}
	seen := make(map[string]bool)
	for i, list := range pgpWords {
		if len(list) != 256 {
			t.Errorf("list %d has %d words", i, len(list))
		}
		for _, w := range list {
			if seen[strings.ToLower(w)] {
				t.Errorf("%s appears twice", w)
			}
			seen[strings.ToLower(w)] = true
		}
	}
}
