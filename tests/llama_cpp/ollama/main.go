// Renders conversations with a Modelfile's TEMPLATE as Ollama does: Go's text/template, its data model.
//
// Standard input: {"template": "...", "conversations": [[{"role": "...", "content": "..."}, ...], ...]}
// Standard output: a JSON list with the text of each.
//
// What is rebuilt here is in Ollama's template/template.go: unknown keys are zero, neighbours of one role become one
// message, .System is every system message joined, and a template that names neither .Messages nor .Response is
// given a .Response at its end (which ours never needs: it is an error here).
package main

import (
	"encoding/json"
	"log"
	"os"
	"strings"
	"text/template"
)

type Message struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

type Job struct {
	Template      string      `json:"template"`
	Conversations [][]Message `json:"conversations"`
}

func collate(said []Message) (string, []*Message) {
	var system []string
	var messages []*Message
	for i := range said {
		if said[i].Role == "system" {
			system = append(system, said[i].Content)
		}
		if last := len(messages) - 1; last >= 0 && messages[last].Role == said[i].Role {
			messages[last].Content += "\n\n" + said[i].Content
		} else {
			messages = append(messages, &said[i])
		}
	}
	return strings.Join(system, "\n\n"), messages
}

func main() {
	log.SetFlags(0)
	var job Job
	if err := json.NewDecoder(os.Stdin).Decode(&job); err != nil {
		log.Fatal(err)
	}
	if !strings.Contains(job.Template, ".Messages") {
		log.Fatal("the template does not go over .Messages")
	}
	parsed, err := template.New("").Option("missingkey=zero").Parse(job.Template)
	if err != nil {
		log.Fatal(err)
	}
	texts := []string{}
	for _, said := range job.Conversations {
		var text strings.Builder
		system, messages := collate(said)
		err := parsed.Execute(&text, map[string]any{"System": system, "Messages": messages, "Response": ""})
		if err != nil {
			log.Fatal(err)
		}
		texts = append(texts, text.String())
	}
	encoder := json.NewEncoder(os.Stdout)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(texts); err != nil {
		log.Fatal(err)
	}
}
