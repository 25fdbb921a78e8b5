package main

import (
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"
)

// commented are keys that an example shows and does not set.
var commented = regexp.MustCompile(`(?m)^#(\[|[a-z_]+ = )`)

// The example files show every key there is, and every key shown exists.
func TestExampleFilesAreComplete(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		file  string
		value any
	}{{"../../docs/bullad.toml", &Config{}}, {"../../docs/genesis.toml", &Plan{}}} {
		if err := loadTOML(c.file, c.value); err != nil {
			t.Errorf("an example key does not exist: %v", err)
			continue
		}
		b, err := os.ReadFile(c.file)
		if err != nil {
			t.Fatal(err)
		}
		var shown map[string]any
		if err := toml.Unmarshal(commented.ReplaceAll(b, []byte("$1")), &shown); err != nil {
			t.Fatal(err)
		}
		have := keys("", shown)
		for _, want := range fields("", reflect.TypeOf(c.value).Elem()) {
			if !slices.Contains(have, want) {
				t.Errorf("%s does not show the key %s", c.file, want)
			}
		}
	}
}

// The example of a configuration is valid as it stands, and so is the plan.
func TestExamplesAreValid(t *testing.T) {
	t.Parallel()
	cfg, err := loadConfig("../../docs/bullad.toml")
	if err != nil {
		t.Fatal(err)
	}
	p, err := loadPlan("../../docs/genesis.toml")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.check(cfg); err != nil {
		t.Error(err)
	}
	if err := p.clockPolicy().Validate(); err != nil {
		t.Error(err)
	}
}

// keys lists the keys of a decoded file, as a.b.c; those of an array of tables are merged.
func keys(prefix string, m map[string]any) []string {
	var out []string
	for k, v := range m {
		switch v := v.(type) {
		case map[string]any:
			out = append(out, keys(prefix+k+".", v)...)
		case []any:
			out = append(out, prefix+k)
			for _, x := range v {
				if m, ok := x.(map[string]any); ok {
					out = append(out, keys(prefix+k+".", m)...)
				}
			}
		default:
			out = append(out, prefix+k)
		}
	}
	return out
}

// fields lists the keys that a configuration struct has.
func fields(prefix string, t reflect.Type) []string {
	var out []string
	for i := range t.NumField() {
		f := t.Field(i)
		if !f.IsExported() {
			continue
		}
		name := prefix + strings.Split(f.Tag.Get("toml"), ",")[0]
		in := f.Type
		for in.Kind() == reflect.Pointer || in.Kind() == reflect.Slice {
			in = in.Elem()
		}
		if in.Kind() == reflect.Struct {
			out = append(out, fields(name+".", in)...)
		} else {
			out = append(out, name)
		}
	}
	return out
}

func TestConfigurationIsRefused(t *testing.T) {
	t.Parallel()
	valid := "state = \"/s\"\n[sockets]\ndirectory = \"/r\"\n[[log]]\nname = \"a\"\norigin = \"o.example/a\"\nfile = \"/a.db\"\nkey = \"tpm:handle=0x81020001\"\n"
	for _, c := range []struct{ name, text, want string }{
		{"unknown key", valid + "pin = \"1234\"\n", `unknown key "log.pin"`},
		{"governed setting", valid + "[clock]\nlimit = \"1s\"\n", `unknown key "clock.limit"`},
		{"not TOML", "state = ", ":1:"},
		{"no log", "state = \"/s\"\n[sockets]\ndirectory = \"/r\"\n", "at least one [[log]]"},
		{"no state", strings.Replace(valid, `state = "/s"`, "", 1), "state:"},
		{"relative file", strings.Replace(valid, "/a.db", "a.db", 1), "log[0].file:"},
		{"name with a slash", strings.Replace(valid, `name = "a"`, `name = "a/b"`, 1), "log[0].name:"},
		{"a file twice", valid + "[[log]]\nname = \"b\"\norigin = \"o.example/b\"\nfile = \"/a.db\"\nkey = \"tpm:handle=0x81020002\"\n", "log[1].file:"},
		{"too large", valid + "#" + strings.Repeat("x", maxConfig), "larger than"},
	} {
		path := t.TempDir() + "/bullad.toml"
		if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := loadConfig(path)
		if err == nil || !strings.Contains(err.Error(), c.want) || exitCode(err) != exitUsage {
			t.Errorf("%s: %v (exit %d), want %q (exit %d)", c.name, err, exitCode(err), c.want, exitUsage)
		}
	}
}
