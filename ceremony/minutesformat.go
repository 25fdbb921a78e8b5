package ceremony

import (
	"bytes"
	"fmt"
	"html"
	"strings"

	"bulla/record"
)

// Markdown writes the minutes as CommonMark with tables.
func (m *Minutes) Markdown() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "# %s\n", markdown(m.title))
	for _, s := range m.sections {
		fmt.Fprintf(&b, "\n## %s\n\n", markdown(s.title))
		if len(s.rows) > 0 || s.header != nil {
			s.markdownTable(&b)
		}
		for _, l := range s.lines {
			fmt.Fprintf(&b, "- %s\n", markdown(l))
		}
		for i, h := range s.hashes {
			if i > 0 {
				b.WriteByte('\n')
			}
			fmt.Fprintf(&b, "%s\n\n```\n%s```\n", markdown(h.name), Aloud(h.hash))
		}
	}
	return b.Bytes()
}

func (s *section) markdownTable(b *bytes.Buffer) {
	header := s.header
	if header == nil {
		header = make([]string, len(s.rows[0]))
	}
	row := func(cells []string) {
		for _, c := range cells {
			b.WriteString("| " + markdown(c) + " ")
		}
		b.WriteString("|\n")
	}
	row(header)
	b.WriteString(strings.Repeat("|---", len(header)) + "|\n")
	for _, r := range s.rows {
		row(r)
	}
}

// markdown escapes what Markdown or HTML would take as its own.
func markdown(s string) string {
	var b strings.Builder
	for _, r := range s {
		if strings.ContainsRune("\\`*_{}[]<>#|&~!", r) {
			b.WriteByte('\\')
		}
		b.WriteRune(r)
	}
	return b.String()
}

// Aloud is a hash in hex, eight bytes a line, each line with its words (record.Words), to be read to each other.
func Aloud(h record.Hash) string {
	var b strings.Builder
	words := record.Words(h)
	for i := 0; i < len(h); i += 8 {
		fmt.Fprintf(&b, "%x  %s\n", h[i:i+8], strings.Join(words[i:i+8], " "))
	}
	return b.String()
}

const htmlHead = `<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>%s</title>
<style>
@page { size: A4; margin: 18mm }
body { font: 10pt/1.4 "DejaVu Sans", Arial, sans-serif; max-width: 60em; margin: 2em auto; color: #000; background: #fff }
h1 { font-size: 16pt } h2 { font-size: 12pt; margin: 1.6em 0 .4em; break-after: avoid }
table { border-collapse: collapse; width: 100%% } td, th { border: 1px solid #777; padding: .25em .5em; text-align: left; vertical-align: top; overflow-wrap: anywhere }
tr { break-inside: avoid } table.sign td { height: 3em }
pre { font: 9pt/1.4 "DejaVu Sans Mono", monospace; border: 1px solid #777; padding: .5em; break-inside: avoid; white-space: pre-wrap }
</style>
</head>
<body>
<h1>%s</h1>
`

// HTML writes the minutes as one page to print: no script, nothing loaded.
func (m *Minutes) HTML() []byte {
	var b bytes.Buffer
	title := html.EscapeString(m.title)
	fmt.Fprintf(&b, htmlHead, title, title)
	for _, s := range m.sections {
		fmt.Fprintf(&b, "<h2>%s</h2>\n", html.EscapeString(s.title))
		if len(s.rows) > 0 || s.header != nil {
			s.htmlTable(&b)
		}
		if len(s.lines) > 0 {
			b.WriteString("<ul>\n")
			for _, l := range s.lines {
				fmt.Fprintf(&b, "<li>%s</li>\n", html.EscapeString(l))
			}
			b.WriteString("</ul>\n")
		}
		for _, h := range s.hashes {
			fmt.Fprintf(&b, "<p>%s</p>\n<pre>%s</pre>\n", html.EscapeString(h.name), html.EscapeString(Aloud(h.hash)))
		}
	}
	b.WriteString("</body>\n</html>\n")
	return b.Bytes()
}

func (s *section) htmlTable(b *bytes.Buffer) {
	class := ""
	if s.title == "Sign-off" {
		class = ` class="sign"`
	}
	fmt.Fprintf(b, "<table%s>\n", class)
	row := func(tag string, cells []string) {
		b.WriteString("<tr>")
		for _, c := range cells {
			fmt.Fprintf(b, "<%s>%s</%s>", tag, html.EscapeString(c), tag)
		}
		b.WriteString("</tr>\n")
	}
	if s.header != nil {
		row("th", s.header)
	}
	for _, r := range s.rows {
		row("td", r)
	}
	b.WriteString("</table>\n")
}
