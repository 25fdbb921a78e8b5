package clock

import (
	"fmt"
	"os"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"
)

// docs/clock-policy.md has a row for every field of the policy, and what it says of defaults and ranges is so.
func TestPolicyIsDocumented(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../docs/clock-policy.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string][]string{}
	for line := range strings.Lines(string(text)) {
		if cells := strings.Split(line, "|"); len(cells) == 7 && strings.HasPrefix(cells[1], " `") {
			rows[strings.Trim(cells[1], " `")] = cells
		}
	}
	fields := reflect.TypeFor[Policy]()
	for i := range fields.NumField() {
		name, _, _ := strings.Cut(fields.Field(i).Tag.Get("json"), ",")
		cells, ok := rows[name]
		if !ok {
			t.Errorf("docs/clock-policy.md does not explain %s", name)
			continue
		}
		delete(rows, name)
		checkRow(t, name, i, strings.TrimSpace(cells[3]), strings.TrimSpace(cells[4]))
	}
	for name := range rows {
		if !strings.Contains("unknown synced holdover unsynced disrupted", name) {
			t.Errorf("docs/clock-policy.md explains %s, which is no field", name)
		}
	}
}

// checkRow checks a field's default, and that Validate's limits are those documented.
func checkRow(t *testing.T, name string, field int, byDefault, limits string) {
	t.Helper()
	value := reflect.ValueOf(DefaultPolicy()).Field(field)
	if !value.CanInt() {
		if got := fmt.Sprint(value.Interface()); got != byDefault || !strings.Contains(limits, got) {
			t.Errorf("%s: the default is %s, documented as %s of %s", name, got, byDefault, limits)
		}
		return
	}
	if got := documented(t, byDefault); got != value.Int() {
		t.Errorf("%s: the default is %d, documented as %s", name, value.Int(), byDefault)
	}
	low, high, ok := strings.Cut(limits, "..")
	if !ok {
		t.Fatalf("%s: %q is no range", name, limits)
	}
	refused := func(v int64) bool {
		p := DefaultPolicy()
		reflect.ValueOf(&p).Elem().Field(field).SetInt(v)
		err := p.Validate()
		return err != nil && strings.HasPrefix(err.Error(), name+":")
	}
	for _, edge := range []struct{ inside, outside int64 }{
		{documented(t, low), documented(t, low) - 1}, {documented(t, high), documented(t, high) + 1},
	} {
		if name == "max_offset" && edge.outside > edge.inside { // 2^53-1 ns are 2501 h and some minutes
			edge.outside += int64(time.Hour)
		}
		if refused(edge.inside) || !refused(edge.outside) {
			t.Errorf("%s: the range is not %s: %d refused: %t, %d refused: %t", name, limits, edge.inside, refused(edge.inside), edge.outside, refused(edge.outside))
		}
	}
}

// documented is a number, a duration in ns, or what another field's default implies.
func documented(t *testing.T, s string) int64 {
	t.Helper()
	p := DefaultPolicy()
	if v, ok := map[string]int64{
		"min_dist": p.MinDist, "limit": p.Limit, "growth": p.Growth, "2f+1": 2*int64(p.F) + 1, "3 poll": 3 * p.Poll,
	}[s]; ok {
		return v
	}
	if n, err := strconv.ParseInt(s, 10, 64); err == nil {
		return n
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		t.Fatalf("%q is neither a number nor a duration", s)
	}
	return int64(d)
}
